"""Threat models by name. Batches are [n,…] in [0, 1]; norms are per sample."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.images import TOLERANCE
from trl.regions import Region, build_region, mask_of
from trl.threat.balls import BALLS, Ball
from trl.threat.norms import length


@dataclass(frozen=True)
class Threat:
    """Perturbations of at most `epsilon` ≥ 0 in the norm `name`, for images that stay in [0, 1].

    `region`: where an image may change, as a function of the clean images (`trl.regions`); None: everywhere.
    TrlError if epsilon is negative or not finite, or the region is no function.
    """

    epsilon: float
    region: Region | None = None
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, Real) and math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise TrlError(
                f"epsilon must be a finite number of at least 0, not {self.epsilon!r}; give one such as 8/255"
            )
        if not (self.region is None or callable(self.region)):
            given = type(self.region).__name__
            raise TrlError(f"a region must be a function of the clean images, not {given}; see trl.regions")

    def within(self, region: Region) -> Self:
        """The same threat inside `region` alone. TrlError if it has a region already."""
        if self.region is not None:
            raise TrlError("the threat has a region already; give one function that says both: lambda x: a(x) & b(x)")
        return replace(self, region=region)

    def around(self, x: Tensor) -> Ball:
        """What the threat allows around the clean images `x`. TrlError if the region does not fit them."""
        mask = None if self.region is None else mask_of(self.region, x)
        return BALLS[self.name](float(self.epsilon), x, mask)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per sample: [n]."""
        return length(x_adv - x, self.name).flatten()

    def excess(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """How far `x_adv` [n,…] is beyond `epsilon` from `x`, float64 [n]; 0 within rounding error.

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


def build_threat(norm: str, epsilon: float, region: Mapping[str, Any] | None = None) -> Threat:
    """The threat called `norm`: `linf`, `l2` or `l1`; its region as params.yaml has it: `{name: border, width: 2}`.

    TrlError for any other name, a negative epsilon, and a region that is unknown or has invalid options.
    """
    if norm not in THREATS:
        raise TrlError(f"unknown norm {norm!r}; known: {', '.join(THREATS)}")
    return THREATS[norm](epsilon, None if region is None else build_region(**region))
