"""A Gaussian mixture per class: like `gaussian`, but for classes with several clusters."""

import warnings
from typing import Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from trl.common.numbers import Count
from trl.detectors.base import Detector
from trl.detectors.density import FLOOR, by_class, log_density


class GaussianMixtureDetector(Detector):
    """Score = -max over classes k of log Σ_j w_kj N(h; μ_kj, Σ_kj), fitted by scikit-learn's EM from k-means.

    `components` per class; fewer for a class without two samples per component. `covariance` of each component: "full"
    or "diagonal". Full covariances are not shrunk, and take classes · components · d² · 8 bytes.
    `layer`: see `Detector`.
    """

    log_weights: Tensor
    means: Tensor
    whitenings: Tensor

    def __init__(
        self, *, components: Count = 2, covariance: Literal["full", "diagonal"] = "diagonal", layer: str | None = None
    ) -> None:
        super().__init__(layer)
        self.components, self.covariance = components, covariance
        shape = "k c d d" if covariance == "full" else "k c d"
        self.learns = {"log_weights": "k c", "means": "k c d", "whitenings": shape}

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """TrlError for a class with a single sample or only equal ones."""
        mixtures = [self._mixture(rows) for rows in by_class(features, labels)]
        log_weights, means, whitenings = (torch.stack(parts) for parts in zip(*mixtures, strict=True))
        self._keep(log_weights=log_weights, means=means, whitenings=whitenings)

    def _score(self, features: Tensor) -> Tensor:
        densities = log_density(features, self.means.flatten(0, 1), self.whitenings.flatten(0, 1))
        return -(densities.reshape(-1, *self.log_weights.shape) + self.log_weights).logsumexp(2).amax(1)

    def _mixture(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights [c], means [c,d] and whitenings [c,d,d] or [c,d] of the mixture of rows [n,d]."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        mean = rows.mean(0)
        unit = (rows - mean).square().mean().sqrt()  # FLOOR is relative to it; a large offset would cost precision
        scaled = ((rows - mean) / unit).cpu().numpy()
        scaled = scaled[np.lexsort(scaled.T[::-1])]  # k-means depends on the order of samples
        count = min(self.components, len(scaled) // 2)
        kind = "full" if self.covariance == "full" else "diag"
        mixture = GaussianMixture(count, covariance_type=kind, reg_covar=FLOOR, random_state=0)
        with warnings.catch_warnings(), threadpool_limits(1, "openmp"):  # threads would sum in random order
            warnings.simplefilter("ignore", ConvergenceWarning)  # the mixture is still usable
            mixture.fit(scaled)
        # with fewer components, repeat the last one and divide its weight
        index = np.minimum(np.arange(self.components), count - 1)
        log_weights = np.log(mixture.weights_[index] / np.bincount(index)[index])
        parts = (log_weights, mixture.means_[index], mixture.precisions_cholesky_[index])
        log_weights, means, whitenings = (torch.from_numpy(part).to(rows) for part in parts)
        return log_weights, mean + unit * means, whitenings / unit
