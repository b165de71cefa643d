"""The I-defender of Zheng & Hong (NeurIPS 2018) with one Gaussian per class, as the TLA paper scores detection."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from trl.detectors.base import Detector
from trl.errors import TrlError
from trl.number import Real

FLOOR = 1e-6  # of the mean variance, added to every variance: constant features (dead ReLUs) keep a density


class GaussianDetector(Detector):
    """Score = -max over classes k of log N(h; μ_k, Σ_k) for natural embeddings h: high where no class is likely.

    `covariance`: "full" per class, "tied" (one for all classes, pooled around the class means) or "diagonal" per class.
    `shrinkage`: towards the mean variance times the identity, in [0, 1]; null means Ledoit & Wolf's (2004) estimate,
    which suits classes with fewer samples than dimensions. Full covariances take classes · d² · 8 bytes.
    """

    means: Tensor
    scales: Tensor

    def __init__(
        self,
        *,
        covariance: Literal["full", "tied", "diagonal"] = "full",
        shrinkage: Annotated[Real, Field(ge=0, le=1)] | None = None,
    ) -> None:
        super().__init__()
        self.covariance, self.shrinkage = covariance, shrinkage

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """A class without samples gets no Gaussian. TrlError for features that do not vary or, unless tied, one row."""
        groups = {k: features[labels == k] for k in sorted(set(labels.tolist()))}
        for k, group in groups.items():
            if len(group) < 2 and self.covariance != "tied":
                raise TrlError(f"class {k} has one sample: give at least two, or take covariance: tied")
        means = [group.mean(0) for group in groups.values()]
        centred = [group - mean for group, mean in zip(groups.values(), means, strict=True)]
        if self.covariance == "tied":
            centred = [torch.cat(centred)]
        scales = [self._scale(rows) for rows in centred]  # one for all if tied
        self._keep(means=torch.stack(means), scales=torch.stack(scales))

    def _score(self, features: Tensor) -> Tensor:
        density: Distribution
        if self.covariance == "diagonal":
            density = Independent(Normal(self.means, self.scales), 1)
        else:
            density = MultivariateNormal(self.means, scale_tril=self.scales, validate_args=False)
        log_density: Tensor = density.log_prob(features[:, None])  # type: ignore[no-untyped-call]
        return -log_density.amax(1)

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
