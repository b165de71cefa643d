"""Threat models: how an attacker may change an image. Batches are [n,…] in [0, 1]; norms are per sample."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.images import TOLERANCE


@dataclass(frozen=True)
class Threat(ABC):
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

    @abstractmethod
    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that maps x_adv to a nearby point in both the ball around `x` and [0, 1].

        Whatever depends only on `x` is computed once. Points already inside are returned unchanged, as a new tensor.
        """

    @abstractmethod
    def random_start(self, x: Tensor) -> Tensor:
        """A point drawn uniformly from the ball around each sample of `x`, then clamped to [0, 1]."""

    @abstractmethod
    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """`x_adv` plus the steepest ascent step of norm `step_size` along `gradient`; not projected.

        `step_size` may be a tensor with one value per sample: [n,1,…]. A zero gradient moves nothing.
        """

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
        """`projection(x)` applied once."""
        return self.projection(x)(x_adv)


class Linf(Threat):
    """No value of an image changes by more than `epsilon`."""

    name = "linf"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The nearest point inside, by clamping."""
        low, high = (x - self.epsilon).clamp_(min=0), (x + self.epsilon).clamp_(max=1)
        return lambda x_adv: torch.clamp(x_adv, low, high)

    def random_start(self, x: Tensor) -> Tensor:
        """Uniform noise in [-epsilon, epsilon] (Madry et al. 2018), then clamped to [0, 1]."""
        return torch.add(x, _empty(x).uniform_(-self.epsilon, self.epsilon)).clamp_(0, 1)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """A step along the sign of the gradient."""
        if isinstance(step_size, Tensor):
            return torch.addcmul(x_adv, gradient.sign(), step_size)
        return torch.add(x_adv, gradient.sign(), alpha=step_size)


class L2(Threat):
    """The Euclidean norm of an image's change is at most `epsilon`."""

    name = "l2"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Scale back to the sphere if outside, then clamp: inside both, but not always the nearest such point."""
        precision = torch.finfo(x.dtype)
        # rounding x + delta can lengthen it by up to √d·eps/4 (for values in [½, 1]): use a smaller radius
        radius = max(0.0, self.epsilon - math.sqrt(x.shape[1:].numel()) * precision.eps / 2)

        def project(x_adv: Tensor) -> Tensor:
            shrink = radius / length(x_adv - x, "l2").clamp_(min=precision.tiny)
            return torch.lerp(x, x_adv, shrink.clamp_(max=1)).clamp_(0, 1)

        return project

    def random_start(self, x: Tensor) -> Tensor:
        """A Gaussian direction with length epsilon·U^(1/d), which is uniform in the ball; then clamped to [0, 1]."""
        noise, d = _empty(x).normal_(), x.shape[1:].numel()
        size = length(noise, "l2")
        return self.project(x + noise * (self.epsilon * torch.rand_like(size).pow_(1 / d) / size), x)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """A step along the normalised gradient."""
        # divide by the largest value first, since the squares of a small gradient underflow
        largest = gradient.abs().amax(dims_of(gradient), keepdim=True)
        direction = gradient / largest.clamp_(min=torch.finfo(gradient.dtype).tiny)
        return x_adv + direction * (step_size / length(direction, "l2").clamp_(min=1))


class L1(Threat):
    """The sum of the absolute changes of an image's values is at most `epsilon`."""

    name = "l1"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The nearest point inside (Croce & Hein 2021, arXiv 2103.01208, proposition 2.1)."""
        precision, dims = torch.finfo(x.dtype), dims_of(x)
        radius = self.epsilon * (1 - 4 * precision.eps)  # leaves room for rounding of relative size eps below

        def project(x_adv: Tensor) -> Tensor:
            change = x_adv - x
            size = change.abs()
            room = torch.where(change > 0, 1 - x, x).clamp_(min=0)
            clamped = x_adv.clamp(0, 1)
            total = torch.minimum(size, room).sum(dims, keepdim=True, dtype=torch.float64)
            size = _shrunk(size, room, radius)
            # float64, since rounding errors add up in long sums
            size.mul_(
                (radius / size.sum(dims, keepdim=True, dtype=torch.float64).clamp_(min=precision.tiny)).clamp_(max=1)
            )
            moved = x + size.copysign(change)
            # rounding of x + change away from x would add up: take the next value towards x
            moved = torch.where((moved - x).abs() > size, moved.nextafter(x), moved).clamp_(0, 1)
            return torch.where(total <= radius, clamped, moved)

        return project

    def random_start(self, x: Tensor) -> Tensor:
        """Uniform in the ball: signed exponentials divided by the sum of all and one more; then clamped to [0, 1]."""
        noise = _empty(x).exponential_()
        total = noise.sum(dims_of(x), keepdim=True)
        noise *= self.epsilon / (total + torch.empty_like(total).exponential_())
        return self.project(x + noise.copysign_(_empty(x).uniform_(-1, 1)), x)

    def ascend(
        self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor, values: Tensor | None = None
    ) -> Tensor:
        """A step of equal size in the 1 % of values with the largest gradients (ties included), along their signs.

        SLIDE (Tramèr & Boneh 2019, arXiv 1904.13000). The steepest step, which changes a single value, would be too
        slow; for up to 100 values, this is that step. `values` [n] sets the number per sample instead of 1 %. Values
        already at the end of [0, 1] that their gradient points to are skipped.
        """
        d, signs = gradient.shape[1:].numel(), gradient.sign()
        # at that end of [0, 1], up to the rounding of a value that was moved there
        slope = gradient.abs().mul_((x_adv + signs * 1e-6 - 0.5).abs() <= 0.5)
        if values is None:
            threshold = slope.flatten(1).topk(math.ceil(d / 100)).values[:, -1:]
        else:  # sort instead of topk, which would need the largest number on the host
            threshold = slope.flatten(1).sort(descending=True).values.gather(1, values.clamp(1, d)[:, None] - 1)
        signs *= (slope > 0) & (slope >= column(threshold, x_adv))
        return x_adv + signs * (step_size / signs.abs().sum(dims_of(signs), keepdim=True).clamp_(min=1))


THREATS: dict[str, type[Threat]] = {threat.name: threat for threat in (Linf, L2, L1)}


def build_threat(norm: str, epsilon: float) -> Threat:
    """The threat called `norm`, `linf`, `l2` or `l1`; TrlError for any other name or a negative epsilon."""
    if norm not in THREATS:
        raise TrlError(f"unknown norm {norm!r}; known: {', '.join(THREATS)}")
    return THREATS[norm](epsilon)


def dims_of(batch: Tensor) -> tuple[int, ...]:
    """All dimensions except the first."""
    return tuple(range(1, batch.ndim))


def column(values: Tensor, batch: Tensor) -> Tensor:
    """Values per sample, [n], shaped to broadcast along `batch`: [n,1,…]."""
    return values.reshape(-1, *(1 for _ in dims_of(batch)))


def length(batch: Tensor, norm: str) -> Tensor:
    """The norm (`linf`, `l2`, `l1`) of each sample, shaped to broadcast: [n,1,…]."""
    dims = dims_of(batch)
    if norm == "l2":
        # not linalg.vector_norm: its naive summation on the CPU is off by 1e-4 for 150,000 equal values
        return batch.square().sum(dims, keepdim=True).sqrt_()
    size = batch.abs()
    return size.amax(dims, keepdim=True) if norm == "linf" else size.sum(dims, keepdim=True)


def _empty(x: Tensor) -> Tensor:
    """Like `x`, to be filled with random values, in rows: so an image gets the same ones whatever the layout of `x`."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _shrunk(size: Tensor, room: Tensor, radius: float) -> Tensor:
    """min(max(size - shift, 0), room), with the shift per sample at which it sums to `radius`; all are [n,…] ≥ 0.

    Valid for samples whose sum at shift 0 exceeds that. The sum falls piecewise linearly with the shift, so false
    position (Illinois, with occasional bisection) finds the right piece in a few passes, faster than a sort.
    """
    dims, tiny, kept = dims_of(size), torch.finfo(size.dtype).tiny, torch.empty_like(size)

    def excess(shift: Tensor) -> Tensor:
        torch.minimum(torch.sub(size, shift, out=kept).clamp_(min=0), room, out=kept)
        return kept.sum(dims, keepdim=True).sub_(radius)

    high = size.amax(dims, keepdim=True)
    low, side = torch.zeros_like(high), torch.zeros_like(high)
    above, below = excess(low), excess(high)
    for i in range(24):
        share = 0.5 if i % 4 == 3 else (above / (above - below).clamp_(min=tiny)).clamp_(0, 1)
        middle = low + (high - low) * share
        value = excess(middle)
        over = value > 0
        same = torch.where(over, 1, -1)
        halved = torch.where(same == side, 0.5, 1.0)  # Illinois: halve the value of an end that stays twice
        low, high, side = torch.where(over, middle, low), torch.where(over, high, middle), same
        above, below = torch.where(over, value, above * halved), torch.where(over, below * halved, value)
    above, at_low = excess(low), kept.clone()
    share = above / (above - excess(high)).clamp_(min=tiny)  # the sum is linear in between
    return at_low.lerp_(kept, share.clamp_(0, 1))
