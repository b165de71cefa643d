"""What counts as success for an attack: a criterion gives the loss to ascend and a verdict per sample."""

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
UNMET = 1e9  # subtracted from the loss of a sample that fails the first criterion, to rank it below those that meet it


class Criterion(ABC):
    """Decides success per sample from the model's outputs and the labels y [n] that the attack was called with.

    Outputs are the logits, followed by one column of scores per detector in `detectors`: [n, k + detectors].
    `a & b` requires both.
    """

    detectors: tuple[Detector, ...] = ()

    def view(self, model: nn.Module) -> nn.Module:
        """The model as the attack runs it: its outputs include the detectors' scores."""
        return Scored(model, self.detectors) if self.detectors else model

    @abstractmethod
    def loss(self, loss: Loss) -> Loss:
        """The loss to ascend, (outputs, y) → [n], for an attack configured with `loss`."""

    @abstractmethod
    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Whether each sample is a success: bool [n]."""

    def __and__(self, other: "Criterion") -> "Both":
        return Both(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Misclassified(Criterion):
    """Predicted as any class but y: the default."""

    def loss(self, loss: Loss) -> Loss:
        """`loss` itself."""
        return loss

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The predicted class is not y."""
        return outputs.argmax(1) != y


class Targeted(Criterion):
    """Predicted as class y: call the attack with the target classes instead of the true labels."""

    def loss(self, loss: Loss) -> Loss:
        """`loss` for the target class, negated."""
        return lambda outputs, y: -loss(outputs, y)

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The predicted class is y."""
        return outputs.argmax(1) == y


class Undetected(Criterion):
    """The score of `detector` is at most `threshold`; the loss is divided by `scale` > 0.

    A good scale is the standard deviation of the natural scores. The detector must be on the model's device.
    """

    def __init__(self, detector: Detector, threshold: float, scale: float = 1.0) -> None:
        self.detectors, self.threshold, self.scale = (detector,), threshold, scale

    def __repr__(self) -> str:
        detector = self.detectors[0]
        made = detector.config or f"{type(detector).__name__} of {detector.reads}"
        return f"Undetected({made} {digest(detector.state_dict())}, {self.threshold!r}, {self.scale!r})"

    def loss(self, loss: Loss) -> Loss:
        """How far the score is below the threshold, in units of `scale`; the argument `loss` is ignored."""
        return lambda outputs, y: (self.threshold - outputs[:, -1]) / self.scale

    def met(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The score is at most the threshold."""
        return outputs[:, -1] <= self.threshold


class Both(Criterion):
    """Success on `first` and on `second`; `strategy` says how their gradients are combined.

    `joint` (used by `a & b`): follow the one further from success; the loss is positive exactly where both are met.
    `selective` (Bryniarski et al. 2022, arXiv 2106.15023, section 4.1): follow the first until it is met, then the
    second, which keeps rising beyond its own success; an attack that keeps its best iterate, such as APGD, keeps the
    highest second loss among iterates that meet the first. `orthogonal` (section 4.2): the same, with each step
    orthogonal to the other gradient, so that to first order the other loss does not change.

    The attack's own loss is replaced by DLR: its sign is the verdict, and it ignores the scale of the logits.
    """

    def __init__(self, first: Criterion, second: Criterion, strategy: Strategy = "joint") -> None:
        check_criterion(first)
        check_criterion(second)
        self.first, self.second, self.strategy = first, second, strategy
        self.detectors = first.detectors + second.detectors

    def __repr__(self) -> str:
        return f"Both({self.first!r}, {self.second!r}, {self.strategy!r})"

    def loss(self, loss: Loss) -> Loss:
        """The combined loss [n], higher = closer to success; the argument `loss` is ignored."""
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
        """Both are met."""
        of_first, of_second = self._split(outputs)
        return self.first.met(of_first, y) & self.second.met(of_second, y)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs for each criterion: the logits with the scores of its own detectors."""
        classes, mine = outputs.shape[1] - len(self.detectors), len(self.first.detectors)
        logits, scores = outputs[:, :classes], outputs[:, classes:]
        return torch.cat([logits, scores[:, :mine]], 1), torch.cat([logits, scores[:, mine:]], 1)


@dataclass(frozen=True)
class InTurn:
    """A loss: `first` where that is not met yet, else `second`, which always ranks higher."""

    first: Loss
    second: Loss
    first_met: Loss

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Per sample [n]."""
        return torch.where(self.first_met(outputs, y), self.second(outputs, y), self.first(outputs, y) - UNMET)


class Orthogonal(InTurn):
    """The same loss; its ascent direction is computed from the gradients of both parts."""

    @staticmethod
    def direction(first: Tensor, second: Tensor, first_met: Tensor) -> Tensor:
        """Per sample the gradient to follow [n,…], without its component along the other one."""
        flat = first.flatten(1), second.flatten(1)
        met = first_met[:, None]
        followed, other = torch.where(met, flat[1], flat[0]), torch.where(met, flat[0], flat[1])
        along = (followed * other).sum(1, keepdim=True) / other.square().sum(1, keepdim=True).clamp_min(1e-30)
        return (followed - along * other).view_as(first)


class Scored(nn.Module):
    """Maps images to logits [n,k] followed by the score of each detector: [n, k + detectors]."""

    def __init__(self, model: nn.Module, detectors: tuple[Detector, ...]) -> None:
        super().__init__()
        self.model, self.detectors = model, detectors

    def forward(self, x: Tensor) -> Tensor:
        """Float64, like the detectors' scores."""
        columns: list[Tensor] = []
        for detector in self.detectors:
            logits, seen = observe(self.model, x, detector.reads)
            columns.append(detector.score(seen)[:, None])
        return torch.cat([logits.double(), *columns], 1)


def check_criterion(criterion: object) -> None:
    """TrlError unless it is a criterion; a common slip is to pass the class instead of an instance."""
    if not isinstance(criterion, Criterion):
        hint = f"{criterion.__name__}()" if isinstance(criterion, type) else "Misclassified() or Targeted()"
        raise TrlError(f"criterion must be a Criterion, not {criterion!r}; use an instance such as {hint}")


MISCLASSIFIED = Misclassified()
