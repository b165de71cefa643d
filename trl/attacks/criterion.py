"""What counts as success for an attack: an object that it asks for a loss to ascend and for a verdict per sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trl.attacks.losses import Loss, dlr
from trl.common.arrays import digest
from trl.common.errors import TrlError
from trl.detectors.base import Detector
from trl.detectors.observe import observe

Strategy = Literal["joint", "selective", "orthogonal"]
UNMET = 1e9  # how far the loss of a sample that fails the first criterion is below that of one which meets it


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

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


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

    def __repr__(self) -> str:
        detector = self.detectors[0]
        made = detector.config or f"{type(detector).__name__} of {detector.reads}"
        return f"Undetected({made} {digest(detector.state_dict())}, {self.threshold!r}, {self.scale!r})"

    def loss(self, loss: Loss) -> Loss:
        """How far the score is below the threshold, in units of `scale`; the attack's own loss has no say."""
        return lambda outputs, y: (self.threshold - outputs[:, -1]) / self.scale

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The score is not above the threshold."""
        return outputs[:, -1] <= self.threshold


class Both(Criterion):
    """Success on `first` and on `second`; `strategy` says how the gradients of the two are brought together.

    `joint` (which `a & b` is): the gradient of the one that is further from success, by a loss that is positive exactly
    where both are met. `selective` (Bryniarski et al. 2022, arXiv 2106.15023, section 4.1): the first until it is met,
    then the second, so that the second goes on rising beyond its own success; an attack that keeps its best iterate,
    such as APGD, keeps the highest second loss among those that meet the first. `orthogonal` (section 4.2): the
    same, each step orthogonal to the other gradient, so that it leaves the other loss as it is.

    In `first` the attack's own loss gives way to DLR, whose sign tells the verdict and whose size does not depend on
    the logits' scale.
    """

    def __init__(self, first: Criterion, second: Criterion, strategy: Strategy = "joint") -> None:
        check_criterion(first)
        check_criterion(second)
        self.first, self.second, self.strategy = first, second, strategy
        self.detectors = first.detectors + second.detectors

    def __repr__(self) -> str:
        return f"Both({self.first!r}, {self.second!r}, {self.strategy!r})"

    def loss(self, loss: Loss) -> Loss:
        """One number per sample that rises with success; `loss` has no say."""
        of_first, of_second = self.first.loss(dlr), self.second.loss(dlr)

        def first(outputs: Tensor, y: Tensor) -> Tensor:
            return of_first(self._split(outputs)[0], y)

        def second(outputs: Tensor, y: Tensor) -> Tensor:
            return of_second(self._split(outputs)[1], y)

        if self.strategy == "joint":
            return lambda outputs, y: torch.minimum(first(outputs, y), second(outputs, y))

        def first_met(outputs: Tensor, y: Tensor) -> Tensor:
            return self.first.met(self._split(outputs)[0], y)

        return (Orthogonal if self.strategy == "orthogonal" else InTurn)(first, second, first_met)

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Both are."""
        of_first, of_second = self._split(outputs)
        return self.first.met(of_first, y) & self.second.met(of_second, y)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, with the scores that belong to each."""
        classes, mine = outputs.shape[1] - len(self.detectors), len(self.first.detectors)
        logits, scores = outputs[:, :classes], outputs[:, classes:]
        return torch.cat([logits, scores[:, :mine]], 1), torch.cat([logits, scores[:, mine:]], 1)


@dataclass(frozen=True)
class InTurn:
    """A loss: `first` where it is not met yet, and `second`, which counts for more, where it is."""

    first: Loss
    second: Loss
    first_met: Loss

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Per sample [n]."""
        return torch.where(self.first_met(outputs, y), self.second(outputs, y), self.first(outputs, y) - UNMET)


class Orthogonal(InTurn):
    """The same loss, whose ascent direction `direction` makes of the gradients of its two parts."""

    @staticmethod
    def direction(first: Tensor, second: Tensor, first_met: Tensor) -> Tensor:
        """Of gradients [n,…]: per sample the one to follow, without its component along the other one."""
        flat = first.flatten(1), second.flatten(1)
        met = first_met[:, None]
        followed, other = torch.where(met, flat[1], flat[0]), torch.where(met, flat[0], flat[1])
        along = (followed * other).sum(1, keepdim=True) / other.square().sum(1, keepdim=True).clamp_min(1e-30)
        return (followed - along * other).view_as(first)


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


def check_criterion(criterion: object) -> None:
    """TrlError unless it is a criterion: not its class, for one."""
    if not isinstance(criterion, Criterion):
        hint = f"{criterion.__name__}()" if isinstance(criterion, type) else "Misclassified() or Targeted()"
        raise TrlError(f"criterion must be a Criterion, not {criterion!r}; use an instance such as {hint}")


MISCLASSIFIED = Misclassified()
