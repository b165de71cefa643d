"""The energy score (Liu et al., NeurIPS 2020, arXiv 2010.03759)."""

from torch import Tensor

from trl.common.numbers import Positive
from trl.detectors.base import Detector


class EnergyDetector(Detector):
    """Score = -T log Σ_k exp(z_k / T) for logits z (equation 4): the free energy, high if no class stands out.

    `temperature` is T > 0.
    """

    reads = "logits"

    def __init__(self, *, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """Nothing to learn: the logits suffice."""

    def _score(self, features: Tensor) -> Tensor:
        return -self.temperature * (features / self.temperature).logsumexp(1)
