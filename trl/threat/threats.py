"""Threat models by name. Batches are [n,…] in [0, 1]; norms are per sample."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.images import TOLERANCE
from trl.threat.balls import BALLS, Ball
from trl.threat.norms import length


@dataclass(frozen=True)
class Threat:
    """Perturbations of at most `epsilon` ≥ 0 in the norm `name`, for images that stay in [0, 1].

    TrlError if epsilon is negative or not finite.
    """

    epsilon: float
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, Real) and math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise TrlError(
                f"epsilon must be a finite number of at least 0, not {self.epsilon!r}; give one such as 8/255"
            )

    def around(self, x: Tensor) -> Ball:
        """What the threat allows around the images `x`."""
        return BALLS[self.name](float(self.epsilon), x)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per sample: [n]."""
        return length(x_adv - x, self.name).flatten()

    def excess(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """How far `x_adv` [n,…] leaves the ball around `x`, float64 [n]; 0 within rounding error.

        Tolerance: 1e-5 in linf, 1e-5 times epsilon in l2 and l1, plus half a float32 step in every value.
        """
        change = x_adv.double() - x.double()
        rounding = length(torch.full_like(change[:1], torch.finfo(torch.float32).eps / 2), self.name).flatten()
        beyond = length(change, self.name).flatten() - self.epsilon
        tolerance = TOLERANCE * (1.0 if self.name == "linf" else self.epsilon)
        return beyond.where(~(beyond <= tolerance + rounding), 0.0)  # NaN stays

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`around(x).project(x_adv)`, for a single use."""
        return self.around(x).project(x_adv)

    def random_start(self, x: Tensor) -> Tensor:
        """`around(x).random_start()`, for a single use."""
        return self.around(x).random_start()


class Linf(Threat):
    """No value of an image changes by more than `epsilon`."""

    name = "linf"


class L2(Threat):
    """The Euclidean norm of an image's change is at most `epsilon`."""

    name = "l2"


class L1(Threat):
    """The sum of the absolute changes of an image's values is at most `epsilon`."""

    name = "l1"


THREATS: dict[str, type[Threat]] = {threat.name: threat for threat in (Linf, L2, L1)}


def build_threat(norm: str, epsilon: float) -> Threat:
    """The threat called `norm`, `linf`, `l2` or `l1`; TrlError for any other name or a negative epsilon."""
    if norm not in THREATS:
        raise TrlError(f"unknown norm {norm!r}; known: {', '.join(THREATS)}")
    return THREATS[norm](epsilon)
