"""The best of several runs on the same samples: the first success, else the result with the highest loss."""

from torch import Tensor


class Kept:
    """Best result per sample so far: `images` [n,…], success `met` bool [n], and loss `highest` [n]."""

    def __init__(self, images: Tensor, met: Tensor, highest: Tensor) -> None:
        self.images, self.met, self.highest = images, met, highest

    def left(self) -> Tensor:
        """Rows without success, integer [m], for the next run."""
        return (~self.met).nonzero().squeeze(1)

    def note(self, rows: Tensor, images: Tensor, met: Tensor, loss: Tensor) -> None:
        """Keep those results of a run on `rows` [m] that improve; none of `rows` had succeeded before the run."""
        better = met | (loss > self.highest[rows])
        chosen = rows[better]
        self.images[chosen], self.met[chosen], self.highest[chosen] = images[better], met[better], loss[better]
