"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397 and 1802.00420): for randomised models."""

from torch import Tensor, nn

from trl.common.errors import TrlError


class EoT(nn.Module):
    """Wraps a `model` whose outputs are random: attacks see the mean over `samples` draws.

    Attack `EoT(model, 20)`, but evaluate `model` itself: there a single draw decides, as it does for a user. Draws are
    separate forward passes, since a model may draw once per batch. An attack that takes its gradient from `ascent`, as
    those of this package do, gets the mean gradient of the *loss*, as in AutoAttack's version "rand". That needs one
    draw in memory at a time and is stronger than the gradient of the mean logits, much stronger for the losses cw and
    dlr. Everything else (verdicts, Square, FAB's Jacobian) sees the mean logits, whose graph holds all draws.
    """

    def __init__(self, model: nn.Module, samples: int = 20) -> None:
        super().__init__()
        if samples < 1:
            raise TrlError(f"EoT needs samples of at least 1, not {samples!r}; 20 is usual")
        self.model, self.samples = model, samples

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits [n,k]."""
        total: Tensor = self.model(x)
        for _ in range(self.samples - 1):
            total = total + self.model(x)
        return total / self.samples
