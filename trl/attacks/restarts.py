"""What is kept of several runs on the same samples: a success, or else the result with the highest loss."""

from torch import Tensor


class Kept:
    """The result per sample so far: `images` [n,…], which are a success (`met` [n]), and the loss (`highest` [n])."""

    def __init__(self, images: Tensor, met: Tensor, highest: Tensor) -> None:
        self.images, self.met, self.highest = images, met, highest

    def left(self) -> Tensor:
        """The rows without a success, integer [m], for the next run."""
        return (~self.met).nonzero().squeeze(1)

    def note(self, rows: Tensor, images: Tensor, met: Tensor, loss: Tensor) -> None:
        """What a run made of the samples `rows` [m] replaces what is worse; `rows` had no success when it began."""
        better = met | (loss > self.highest[rows])
        chosen = rows[better]
        self.images[chosen], self.met[chosen], self.highest[chosen] = images[better], met[better], loss[better]
