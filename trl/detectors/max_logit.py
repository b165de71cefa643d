"""The maximum logit (Hendrycks et al., ICML 2022, arXiv 1911.11132)."""

from torch import Tensor

from trl.detectors.base import Detector


class MaxLogitDetector(Detector):
    """Score = -max_k z_k for logits z: high if no class stands out."""

    reads = "logits"

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """Nothing to learn: the logits suffice."""

    def _score(self, features: Tensor) -> Tensor:
        return -features.amax(1)
