"""The Mahalanobis detector of Lee et al. (NeurIPS 2018, arXiv 1807.03888), learnt from natural images only."""

import torch
from torch import Tensor

from trl.detectors.density import FLOOR, by_class, squared_distances
from trl.detectors.gaussian import GaussianDetector, Shrinkage


class MahalanobisDetector(GaussianDetector):
    """Score = min over classes k of (h - μ_k)ᵀ Σ⁻¹ (h - μ_k), for the pooled outputs h of several layers at once.

    The paper gives every layer its own covariance and score (equation 2), and weights the scores by a logistic
    regression trained on adversarial images. Here a single covariance over all layers, tied across classes and learnt
    from natural images only, weights them, and the input is not perturbed before scoring.
    `shrinkage` is that of `GaussianDetector`, after scaling every feature to unit variance.
    """

    reads = "layers"

    def __init__(self, *, shrinkage: Shrinkage = None) -> None:
        super().__init__(covariance="tied", shrinkage=shrinkage)

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """TrlError for features that do not vary within any class."""
        centred = torch.cat([rows - rows.mean(0) for rows in by_class(features, labels, tied=True)])
        variance = centred.square().mean(0)
        unit = (variance + FLOOR * variance.mean()).sqrt()  # layers differ in scale: shrinkage would drown small ones
        super()._learn(features / unit, labels)
        self._keep(means=self.means * unit, whitenings=self.whitenings / unit[:, None])

    def _score(self, features: Tensor) -> Tensor:
        return squared_distances(features, self.means, self.whitenings).amin(1)
