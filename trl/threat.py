"""Threat models: what an attacker may do to an image. Batches are [n,…] with values in [0, 1]; norms act per sample."""

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
    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """`x_adv` moved by the step of norm `step_size` along which `gradient` rises most; not projected.

        A tensor holds a step size per sample: [n,1,…]. A zero gradient moves nothing.
        """

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per sample: [n]."""
        return length(x_adv - x, self.name).flatten()

    def excess(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """How far `x_adv` [n,…] leaves the ball around `x`, float64 [n]; 0 up to what rounding explains.

        That is 1e-5 in linf, 1e-5 of epsilon in l2 and l1, and half a step of float32 in every value.
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
        """The nearest point inside."""
        low, high = (x - self.epsilon).clamp_(min=0), (x + self.epsilon).clamp_(max=1)
        return lambda x_adv: torch.clamp(x_adv, low, high)

    def random_start(self, x: Tensor) -> Tensor:
        """Uniform noise in [-epsilon, epsilon] (Madry et al. 2018), then clamped to [0, 1]."""
        return torch.add(x, _empty(x).uniform_(-self.epsilon, self.epsilon)).clamp_(0, 1)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """A step along the gradient's signs."""
        if isinstance(step_size, Tensor):
            return torch.addcmul(x_adv, gradient.sign(), step_size)
        return torch.add(x_adv, gradient.sign(), alpha=step_size)


class L2(Threat):
    """The Euclidean length of an image's change is at most `epsilon`."""

    name = "l2"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Scaled back to the sphere if outside, then clamped: inside both, though not always the nearest such point."""
        precision = torch.finfo(x.dtype)
        # rounding x + delta can make it longer by up to √d·eps/4 (for values in [½, 1]): aim lower
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
        # first divided by its largest value, since the squares of a small gradient underflow
        largest = gradient.abs().amax(dims_of(gradient), keepdim=True)
        direction = gradient / largest.clamp_(min=torch.finfo(gradient.dtype).tiny)
        return x_adv + direction * (step_size / length(direction, "l2").clamp_(min=1))


class L1(Threat):
    """The sum of the absolute changes of an image's values is at most `epsilon`."""

    name = "l1"

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The nearest point inside (Croce & Hein 2021, arXiv 2103.01208, proposition 2.1)."""
        precision, dims = torch.finfo(x.dtype), dims_of(x)
        radius = self.epsilon * (1 - 4 * precision.eps)  # room for the rounding of relative size eps below

        def project(x_adv: Tensor) -> Tensor:
            change = x_adv - x
            size = change.abs()
            room = torch.where(change > 0, 1 - x, x).clamp_(min=0)
            clamped = x_adv.clamp(0, 1)
            total = torch.minimum(size, room).sum(dims, keepdim=True, dtype=torch.float64)
            size = _shrunk(size, room, radius)
            # float64, since the rounding of long sums exceeds that of one value
            size.mul_(
                (radius / size.sum(dims, keepdim=True, dtype=torch.float64).clamp_(min=precision.tiny)).clamp_(max=1)
            )
            moved = x + size.copysign(change)
            # values that x + change rounds away from x add up: take their neighbour on the side of x
            moved = torch.where((moved - x).abs() > size, moved.nextafter(x), moved).clamp_(0, 1)
            return torch.where(total <= radius, clamped, moved)

        return project

    def random_start(self, x: Tensor) -> Tensor:
        """Uniform in the ball: signed exponentials over the sum of themselves and one more; then clamped to [0, 1]."""
        noise = _empty(x).exponential_()
        total = noise.sum(dims_of(x), keepdim=True)
        noise *= self.epsilon / (total + torch.empty_like(total).exponential_())
        return self.project(x + noise.copysign_(_empty(x).uniform_(-1, 1)), x)

    def ascend(
        self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor, values: Tensor | None = None
    ) -> Tensor:
        """A step of equal size in the 1 % of the values with the largest gradients (ties included), along their signs.

        SLIDE (Tramèr & Boneh 2019, arXiv 1904.13000). The steepest step, which changes one value, fills images too
        slowly; up to 100 values, it is that step. `values` [n] says how many of them per sample, instead of 1 %.
        Values that are at the end of [0, 1] to which their gradient points are passed over.
        """
        d, signs = gradient.shape[1:].numel(), gradient.sign()
        # the end that this step leads to, and as near as rounding leaves a value that was moved there
        slope = gradient.abs().mul_((x_adv + signs * 1e-6 - 0.5).abs() <= 0.5)
        if values is None:
            threshold = slope.flatten(1).topk(math.ceil(d / 100)).values[:, -1:]
        else:  # sorted, since topk with the most that a sample has needs to know that number on the host
            threshold = slope.flatten(1).sort(descending=True).values.gather(1, values.clamp(1, d)[:, None] - 1)
        signs *= (slope > 0) & (slope >= column(threshold, x_adv))
        return x_adv + signs * (step_size / signs.abs().sum(dims_of(signs), keepdim=True).clamp_(min=1))


THREATS: dict[str, type[Threat]] = {threat.name: threat for threat in (Linf, L2, L1)}


def build_threat(norm: str, epsilon: float) -> Threat:
    """The threat called `norm`, `linf`, `l2` or `l1`; TrlError for another name or an epsilon below 0."""
    if norm not in THREATS:
        raise TrlError(f"unknown norm {norm!r}; known: {', '.join(THREATS)}")
    return THREATS[norm](epsilon)


def dims_of(batch: Tensor) -> tuple[int, ...]:
    """All dimensions but the first."""
    return tuple(range(1, batch.ndim))


def column(values: Tensor, batch: Tensor) -> Tensor:
    """A value per sample, [n], shaped to broadcast along `batch`: [n,1,…]."""
    return values.reshape(-1, *(1 for _ in dims_of(batch)))


def length(batch: Tensor, norm: str) -> Tensor:
    """The norm (`linf`, `l2`, `l1`) of each sample, shaped to broadcast: [n,1,…]."""
    dims = dims_of(batch)
    if norm == "l2":
        # not linalg.vector_norm, which on the CPU adds value by value: wrong by 1e-4 for 150,000 equal values
        return batch.square().sum(dims, keepdim=True).sqrt_()
    size = batch.abs()
    return size.amax(dims, keepdim=True) if norm == "linf" else size.sum(dims, keepdim=True)


def _empty(x: Tensor) -> Tensor:
    """Like `x`, to be filled with random values, in rows: so an image gets the same ones whatever the layout of `x`."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _shrunk(size: Tensor, room: Tensor, radius: float) -> Tensor:
    """min(max(size - shift, 0), room) with the shift per sample at which it adds up to `radius`; all are [n,…] ≥ 0.

    For samples where a shift of 0 leaves more than that. The sum falls piecewise linearly with the shift, so false
    position (Illinois, with a bisection now and then) finds the piece in a few passes, where a sort would take longer.
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
        halved = torch.where(same == side, 0.5, 1.0)  # the end that stays put twice counts half: Illinois
        low, high, side = torch.where(over, middle, low), torch.where(over, high, middle), same
        above, below = torch.where(over, value, above * halved), torch.where(over, below * halved, value)
    above, at_low = excess(low), kept.clone()
    share = above / (above - excess(high)).clamp_(min=tiny)  # the sum is linear in between
    return at_low.lerp_(kept, share.clamp_(0, 1))
