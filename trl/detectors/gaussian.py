"""The I-defender of Zheng & Hong (NeurIPS 2018) with one Gaussian per class, as in the TLA paper."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from trl.common.numbers import Real
from trl.detectors.base import Detector
from trl.detectors.density import FLOOR, by_class, log_density, whitening

Shrinkage = Annotated[Real, Field(ge=0, le=1)] | None


class GaussianDetector(Detector):
    """Score = -max over classes k of log N(h; μ_k, Σ_k) for embeddings h: high if no class is likely.

    `covariance`: "full" per class, "tied" (one for all classes, pooled around the class means) or "diagonal" per class.
    `shrinkage` in [0, 1] towards the mean variance times the identity; null uses the estimate of Ledoit & Wolf (2004),
    which works with fewer samples than dimensions. Full covariances take classes · d² · 8 bytes.
    `layer`: see `Detector`.
    """

    means: Tensor
    whitenings: Tensor

    def __init__(
        self,
        *,
        covariance: Literal["full", "tied", "diagonal"] = "full",
        shrinkage: Shrinkage = None,
        layer: str | None = None,
    ) -> None:
        super().__init__(layer)
        self.covariance, self.shrinkage = covariance, shrinkage
        self.learns = {"means": "k d", "whitenings": {"full": "k d d", "tied": "1 d d", "diagonal": "k d"}[covariance]}

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """Classes without samples are skipped. TrlError for features that do not vary or, unless tied, a single row."""
        tied = self.covariance == "tied"
        groups = by_class(features, labels, tied)
        means = [rows.mean(0) for rows in groups]
        centred = [rows - mean for rows, mean in zip(groups, means, strict=True)]
        if tied:
            centred = [torch.cat(centred)]
        self._keep(means=torch.stack(means), whitenings=torch.stack([self._whitening(rows) for rows in centred]))

    def _score(self, features: Tensor) -> Tensor:
        return -log_density(features, self.means, self.whitenings).amax(1)

    def _whitening(self, centred: Tensor) -> Tensor:
        """W [d,d] of the shrunk covariance of centred rows [n,d]; its diagonal [d] if `covariance` is diagonal."""
        from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance

        rows = centred.cpu().numpy()
        if self.shrinkage is None:
            estimate, _ = ledoit_wolf(rows, assume_centered=True)
        else:
            estimate = shrunk_covariance(empirical_covariance(rows, assume_centered=True), self.shrinkage)
        covariance = torch.from_numpy(estimate).to(centred)
        covariance.diagonal().add_(FLOOR * np.trace(estimate) / len(estimate))
        return covariance.diagonal().rsqrt() if self.covariance == "diagonal" else whitening(covariance)
