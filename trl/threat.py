"""Threat models: what an attacker may do to an image. Batches are [n,…] with values in [0, 1]; norms act per sample."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from trl.errors import TrlError


@dataclass(frozen=True)
class Threat(ABC):
    """Perturbations of at most `epsilon` ≥ 0 in the norm `name`, for images that stay in [0, 1].

    TrlError if epsilon is negative or no finite number.
    """

    epsilon: float
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, Real) and math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise TrlError(
                f"epsilon must be a finite number of at least 0, not {self.epsilon!r}; use one such as 8/255"
            )

    @abstractmethod
    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The function x_adv → nearby point that is both in the ball around `x` and in [0, 1].

        What depends on `x` alone is computed once. A point already inside comes back unchanged, as a new tensor.
        """

    @abstractmethod
    def random_start(self, x: Tensor) -> Tensor:
        """A point drawn uniformly from the ball around each sample of `x`, then clamped to [0, 1]."""

    @abstractmethod
    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """`x_adv` moved by the step of norm `step_size` along which `gradient` rises most; not projected.

        A zero gradient moves nothing.
        """

    @abstractmethod
    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per sample: [n]."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`projection(x)` applied once."""
        return self.projection(x)(x_adv)


class Linf(Threat):
    """No value of an image changes by more than `epsilon`."""

    name = "linf"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The nearest point inside."""
        low, high = (x - self.epsilon).clamp_(min=0), (x + self.epsilon).clamp_(max=1)
        return lambda x_adv: torch.clamp(x_adv, low, high)

    def random_start(self, x: Tensor) -> Tensor:
        """Uniform noise in [-epsilon, epsilon] (Madry et al. 2018), then clamped to [0, 1]."""
        return torch.empty_like(x).uniform_(-self.epsilon, self.epsilon).add_(x).clamp_(0, 1)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """A step along the gradient's signs."""
        return torch.add(x_adv, gradient.sign(), alpha=step_size)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Largest absolute change per sample: [n]."""
        return (x_adv - x).abs().amax(_dims(x))


class L2(Threat):
    """The Euclidean length of an image's change is at most `epsilon`."""

    name = "l2"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Scaled back to the sphere if outside, then clamped: inside both, though not always the nearest such point."""
        precision = torch.finfo(x.dtype)
        # rounding x + delta can make it longer by up to √d·eps/4 (for values in [½, 1]): aim lower
        radius = max(0.0, self.epsilon - math.sqrt(x.shape[1:].numel()) * precision.eps / 2)

        def project(x_adv: Tensor) -> Tensor:
            shrink = radius / _length(x_adv - x).clamp_(min=precision.tiny)
            return torch.lerp(x, x_adv, shrink.clamp_(max=1)).clamp_(0, 1)

        return project

    def random_start(self, x: Tensor) -> Tensor:
        """A Gaussian direction with length epsilon·U^(1/d), which is uniform in the ball; then clamped to [0, 1]."""
        noise, d = torch.empty_like(x).normal_(), x.shape[1:].numel()
        length = self.epsilon * torch.rand_like(_length(x)).pow_(1 / d)
        return self.project(x + noise * (length / _length(noise)), x)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """A step along the normalised gradient."""
        # first divided by its largest value, since the squares of a small gradient underflow
        largest = gradient.abs().amax(_dims(gradient), keepdim=True)
        direction = gradient / largest.clamp_(min=torch.finfo(gradient.dtype).tiny)
        return x_adv + direction * (step_size / _length(direction).clamp_(min=1))

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Euclidean length of the change per sample: [n]."""
        return _length(x_adv - x).flatten()


THREATS: dict[str, type[Threat]] = {threat.name: threat for threat in (Linf, L2)}


def build_threat(norm: str, epsilon: float) -> Threat:
    """The threat called `norm`, `linf` or `l2`; TrlError for another name or an epsilon below 0."""
    if norm not in THREATS:
        raise TrlError(f"unknown norm {norm!r}; known: {', '.join(THREATS)}")
    return THREATS[norm](epsilon)


def _dims(batch: Tensor) -> tuple[int, ...]:
    """All dimensions but the first."""
    return tuple(range(1, batch.ndim))


def _length(batch: Tensor) -> Tensor:
    """Euclidean length per sample, shaped to broadcast: [n,1,…]."""
    # not linalg.vector_norm, which on the CPU adds value by value: wrong by 1e-4 for 150,000 equal values
    return batch.square().sum(_dims(batch), keepdim=True).sqrt_()
