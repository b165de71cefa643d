"""What counts as success for an attack: an object that it asks for a loss to ascend and for a verdict per sample."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trl.attacks.losses import Loss, dlr
from trl.detectors.base import Detector
from trl.detectors.observe import observe


class Criterion(ABC):
    """Success on a sample, given the model's outputs [n,…] and the labels y [n] that the attack was called with.

    The outputs are the logits, followed by one column with the score of each of its `detectors`.
    `a & b` is success on both.
    """

    detectors: tuple[Detector, ...] = ()

    def view(self, model: nn.Module) -> nn.Module:
        """The model as the attack runs it: with the detectors' scores beside its logits."""
        return Scored(model, self.detectors) if self.detectors else model

    @abstractmethod
    def loss(self, loss: Loss) -> Loss:
        """What to ascend, a function (outputs, y) → [n], for an attack that was asked to use `loss`."""

    @abstractmethod
    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """bool [n]: is it a success?"""

    def __and__(self, other: "Criterion") -> "Both":
        return Both(self, other)


class Misclassified(Criterion):
    """Any class but y: the default."""

    def loss(self, loss: Loss) -> Loss:
        """`loss` itself."""
        return loss

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The predicted class is not y."""
        return outputs.argmax(1) != y


class Targeted(Criterion):
    """Class y itself: the attack is called with the class to reach in the place of the true one."""

    def loss(self, loss: Loss) -> Loss:
        """`loss` of the target, negated."""
        return lambda outputs, y: -loss(outputs, y)

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The predicted class is y."""
        return outputs.argmax(1) == y


class Undetected(Criterion):
    """The `detector`'s score is at most `threshold`; `scale` > 0 is the unit in which its excess is ascended.

    A unit that suits: the standard deviation of the natural scores. The detector is on the model's device.
    """

    def __init__(self, detector: Detector, threshold: float, scale: float = 1.0) -> None:
        self.detectors, self.threshold, self.scale = (detector,), threshold, scale

    def loss(self, loss: Loss) -> Loss:
        """How far the score is below the threshold, in units of `scale`; the attack's own loss has no say."""
        return lambda outputs, y: (self.threshold - outputs[:, -1]) / self.scale

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The score is not above the threshold."""
        return outputs[:, -1] <= self.threshold


class Both(Criterion):
    """Success on `first` and on `second`."""

    def __init__(self, first: Criterion, second: Criterion) -> None:
        self.first, self.second = first, second
        self.detectors = first.detectors + second.detectors

    def loss(self, loss: Loss) -> Loss:
        """The smaller of the two losses, so that the gradient is that of the one which is further from success.

        This is the selective strategy of Bryniarski et al. (2022, arXiv 2106.15023, section 4.1) as one function,
        continuous and positive exactly where both are met: `loss` gives way to DLR, whose sign tells the verdict and
        whose size does not depend on the logits' scale.
        """
        first, second = self.first.loss(dlr), self.second.loss(dlr)

        def smaller(outputs: Tensor, y: Tensor) -> Tensor:
            of_first, of_second = self._split(outputs)
            return torch.minimum(first(of_first, y), second(of_second, y))

        return smaller

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Both are."""
        of_first, of_second = self._split(outputs)
        return self.first.met(of_first, y) & self.second.met(of_second, y)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, with the scores that belong to each."""
        classes, mine = outputs.shape[1] - len(self.detectors), len(self.first.detectors)
        logits, scores = outputs[:, :classes], outputs[:, classes:]
        return torch.cat([logits, scores[:, :mine]], 1), torch.cat([logits, scores[:, mine:]], 1)


class Scored(nn.Module):
    """Images to logits [n,k] and, beside them, the score of each detector: [n, k + detectors]."""

    def __init__(self, model: nn.Module, detectors: tuple[Detector, ...]) -> None:
        super().__init__()
        self.model, self.detectors = model, detectors

    def forward(self, x: Tensor) -> Tensor:
        """Float64, since the detectors' scores are."""
        columns: list[Tensor] = []
        for detector in self.detectors:
            logits, seen = observe(self.model, x, detector.reads)
            columns.append(detector.score(seen)[:, None])
        return torch.cat([logits.double(), *columns], 1)


MISCLASSIFIED = Misclassified()
