"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397 and 1802.00420): for randomised models."""

from torch import Tensor, nn

from trl.common.errors import TrlError


class EoT(nn.Module):
    """A `model` that draws random numbers at inference, as attacks should see it: the mean over `samples` draws.

    Attack `EoT(model, 20)` and evaluate `model` itself: one draw decides there, as it does for a user. Draws follow
    one another, as a model may draw once per batch. Where an attack asks for a gradient through `ascent`, as those of
    this package do, it gets the mean gradient of the *loss*, as in AutoAttack's version "rand": with one draw in
    memory at a time, and stronger than the gradient of the mean logits, by a lot for the losses cw and dlr. Anything
    else (a verdict, Square, FAB's Jacobian) sees the mean logits, whose graph holds all draws.
    """

    def __init__(self, model: nn.Module, samples: int = 20) -> None:
        super().__init__()
        if samples < 1:
            raise TrlError(f"EoT needs at least 1 draw of the model, not {samples!r}; 20 are usual")
        self.model, self.samples = model, samples

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits [n,k]."""
        total: Tensor = self.model(x)
        for _ in range(self.samples - 1):
            total = total + self.model(x)
        return total / self.samples
