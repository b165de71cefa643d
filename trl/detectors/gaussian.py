"""The I-defender of Zheng & Hong (NeurIPS 2018) with one Gaussian per class, as the TLA paper scores detection."""

from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field
from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from trl.errors import TrlError
from trl.number import Real

FLOOR = 1e-6  # of the mean variance, added to every variance: constant features (dead ReLUs) keep a density
BATCH = 4096


class GaussianDetector:
    """Score = -max over classes k of log N(h; μ_k, Σ_k) for natural embeddings h: high where no class is likely.

    `covariance`: "full" per class, "tied" (one for all classes, pooled around the class means) or "diagonal" per class.
    `shrinkage`: towards the mean variance times the identity, in [0, 1]; null means Ledoit & Wolf's (2004) estimate,
    which suits classes with fewer samples than dimensions. Full covariances take classes · d² · 8 bytes.
    """

    def __init__(
        self,
        *,
        covariance: Literal["full", "tied", "diagonal"] = "full",
        shrinkage: Annotated[Real, Field(ge=0, le=1)] | None = None,
    ) -> None:
        self.covariance, self.shrinkage = covariance, shrinkage
        self.densities: list[Distribution] = []

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Fit to natural training embeddings [n,d] with labels [n]; a class without samples gets no Gaussian.

        TrlError for embeddings that are not finite or do not vary, and for a class with one sample (unless tied).
        """
        _check(features)
        if labels.shape != features.shape[:1] or len(features) == 0:
            raise TrlError(f"{tuple(features.shape)} embeddings with {tuple(labels.shape)} labels: give one label each")
        groups = {k: features[labels == k].double() for k in sorted(set(labels.tolist()))}
        for k, group in groups.items():
            if len(group) < 2 and self.covariance != "tied":
                raise TrlError(f"class {k} has one sample: give at least two, or take covariance: tied")
        means = [group.mean(0) for group in groups.values()]
        centred = [group - mean for group, mean in zip(groups.values(), means, strict=True)]
        if self.covariance == "tied":
            centred = [torch.cat(centred)]
        scales = [self._scale(rows) for rows in centred]
        if self.covariance == "tied":
            scales *= len(means)
        self.densities = [
            Independent(Normal(mean, scale), 1)
            if self.covariance == "diagonal"
            else MultivariateNormal(mean, scale_tril=scale)
            for mean, scale in zip(means, scales, strict=True)
        ]
        return self

    def score(self, features: Tensor) -> Tensor:
        """Scores float64 [n] of embeddings [n,d], where the detector was fitted; differentiable in the embeddings."""
        if not self.densities:
            raise TrlError("the detector is not fitted: call fit(features, labels) with natural training embeddings")
        _check(features)
        mean = self.densities[0].mean
        if features.shape[1] != len(mean):
            raise TrlError(f"embeddings have {features.shape[1]} dimensions, the detector was fitted to {len(mean)}")
        scores = [
            -torch.stack([density.log_prob(batch) for density in self.densities]).amax(0)
            for batch in features.to(mean.device, torch.float64).split(BATCH)  # type: ignore[no-untyped-call]
        ]
        return torch.cat(scores)

    def _scale(self, centred: Tensor) -> Tensor:
        """Standard deviations [d] or lower Cholesky factor [d,d] of the shrunk covariance of centred rows [n,d]."""
        rows = centred.cpu().numpy()
        if self.shrinkage is None:
            estimate, _ = ledoit_wolf(rows, assume_centered=True)
        else:
            estimate = shrunk_covariance(empirical_covariance(rows, assume_centered=True), self.shrinkage)
        mean_variance = np.trace(estimate) / len(estimate)
        if mean_variance == 0:
            raise TrlError("the embeddings of a class are all the same: there is no density to fit")
        covariance = torch.from_numpy(estimate).to(centred)
        covariance.diagonal().add_(FLOOR * mean_variance)
        if self.covariance == "diagonal":
            return covariance.diagonal().sqrt()
        return torch.linalg.cholesky(covariance)


def _check(features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise TrlError(f"embeddings are {tuple(features.shape)} {features.dtype}: give floats [n,d]")
    if not features.isfinite().all():
        raise TrlError("an embedding is NaN or infinite: the model that made it is broken")
