"""What an attacker may reach from images `x`, [n,…] in [0, 1]; what depends on `x` alone is computed once."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trl.threat.norms import column, dims_of, empty_rows, length


class Ball(ABC):
    """The points at most `epsilon` from each image of `x` in the norm `norm`, inside [0, 1].

    `mask`, bool like `x`: the region in which a point may differ from `x`; None: everywhere. `ball[rows]` is the ball
    around `x[rows]`, for an attack that drops samples.
    """

    norm: ClassVar[str]

    def __init__(self, epsilon: float, x: Tensor, mask: Tensor | None = None) -> None:
        self.epsilon, self.x, self.mask = epsilon, x, mask

    def __getitem__(self, index: Any) -> Self:
        """The ball around `x[index]`."""
        return self._map(lambda tensor: tensor[index])

    def reshape(self, *shape: int) -> Self:
        """The same ball for images of another shape: [n,…]."""
        return self._map(lambda tensor: tensor.reshape(shape))

    def at(self, epsilon: float) -> Self:
        """The ball of another size around the same images."""
        return type(self)(epsilon, self.x, self.mask)

    @abstractmethod
    def project(self, x_adv: Tensor) -> Tensor:
        """A point of the ball near `x_adv`. Points already inside are returned unchanged, as a new tensor."""

    def confine(self, x_adv: Tensor) -> Tensor:
        """The nearest point in [0, 1] that equals `x` outside the region, however far away; may overwrite `x_adv`."""
        return self.restore(x_adv).clamp_(0, 1)

    def restore(self, x_adv: Tensor) -> Tensor:
        """`x_adv` inside the region, `x` outside."""
        return x_adv if self.mask is None else torch.where(self.mask, x_adv, self.x)

    def cut(self, change: Tensor) -> Tensor:
        """`change`, such as a gradient, inside the region, 0 outside."""
        return change if self.mask is None else torch.where(self.mask, change, 0.0)

    @abstractmethod
    def random_start(self) -> Tensor:
        """A point drawn uniformly from the ball around each sample of `x`, then clamped to [0, 1]."""

    @abstractmethod
    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """`x_adv` plus the steepest ascent step of norm `step_size` along `gradient`; not projected.

        `step_size` may be a tensor with one value per sample: [n,1,…]. A zero gradient moves nothing.
        """

    def distance(self, x_adv: Tensor) -> Tensor:
        """The norm of `x_adv - x` per sample: [n]."""
        return length(x_adv - self.x, self.norm).flatten()

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        mapped = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(mapped, name, function(value))
        return mapped


class LinfBall(Ball):
    """No value of an image changes by more than `epsilon`."""

    norm = "linf"

    def __init__(self, epsilon: float, x: Tensor, mask: Tensor | None = None) -> None:
        super().__init__(epsilon, x, mask)
        self.low, self.high = ((x + self.cut(torch.full_like(x, e))).clamp_(0, 1) for e in (-epsilon, epsilon))

    def project(self, x_adv: Tensor) -> Tensor:
        """The nearest point inside, by clamping."""
        return torch.clamp(x_adv, self.low, self.high)

    def random_start(self) -> Tensor:
        """Uniform noise in [-epsilon, epsilon] (Madry et al. 2018), then clamped to [0, 1]."""
        return self.confine(torch.add(self.x, empty_rows(self.x).uniform_(-self.epsilon, self.epsilon)))

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """A step along the sign of the gradient."""
        if isinstance(step_size, Tensor):
            return torch.addcmul(x_adv, gradient.sign(), step_size)
        return torch.add(x_adv, gradient.sign(), alpha=step_size)


class L2Ball(Ball):
    """The Euclidean norm of an image's change is at most `epsilon`."""

    norm = "l2"

    def project(self, x_adv: Tensor) -> Tensor:
        """Scale back to the sphere if outside, then clamp: inside both, but not always the nearest such point."""
        x, x_adv, precision = self.x, self.restore(x_adv), torch.finfo(self.x.dtype)
        # rounding x + delta can lengthen it by up to √d·eps/4 (for values in [½, 1]): use a smaller radius
        radius = max(0.0, self.epsilon - math.sqrt(x.shape[1:].numel()) * precision.eps / 2)
        shrink = radius / length(x_adv - x, "l2").clamp_(min=precision.tiny)
        return torch.lerp(x, x_adv, shrink.clamp_(max=1)).clamp_(0, 1)

    def random_start(self) -> Tensor:
        """A Gaussian direction with length epsilon·U^(1/d), which is uniform in the ball; then clamped to [0, 1]."""
        noise, d = self.cut(empty_rows(self.x).normal_()), self.x.shape[1:].numel()
        size = length(noise, "l2").clamp_(min=torch.finfo(noise.dtype).tiny)  # 0 where the region is empty
        share = 1 / d if self.mask is None else 1 / self.mask.sum(dims_of(noise), keepdim=True).clamp_(min=1)
        return self.project(self.x + noise * (self.epsilon * torch.rand_like(size).pow_(share) / size))

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """A step along the normalised gradient."""
        # divide by the largest value first, since the squares of a small gradient underflow
        largest = gradient.abs().amax(dims_of(gradient), keepdim=True)
        direction = gradient / largest.clamp_(min=torch.finfo(gradient.dtype).tiny)
        return x_adv + direction * (step_size / length(direction, "l2").clamp_(min=1))


class L1Ball(Ball):
    """The sum of the absolute changes of an image's values is at most `epsilon`."""

    norm = "l1"

    def project(self, x_adv: Tensor) -> Tensor:
        """The nearest point inside (Croce & Hein 2021, arXiv 2103.01208, proposition 2.1)."""
        x, x_adv, precision, dims = self.x, self.restore(x_adv), torch.finfo(self.x.dtype), dims_of(self.x)
        radius = self.epsilon * (1 - 4 * precision.eps)  # leaves room for rounding of relative size eps below
        change = x_adv - x
        size = change.abs()
        room = torch.where(change > 0, 1 - x, x).clamp_(min=0)
        clamped = x_adv.clamp(0, 1)
        total = torch.minimum(size, room).sum(dims, keepdim=True, dtype=torch.float64)
        size = _shrunk(size, room, radius)
        # float64, since rounding errors add up in long sums
        size.mul_((radius / size.sum(dims, keepdim=True, dtype=torch.float64).clamp_(min=precision.tiny)).clamp_(max=1))
        moved = x + size.copysign(change)
        # rounding of x + change away from x would add up: take the next value towards x
        moved = torch.where((moved - x).abs() > size, moved.nextafter(x), moved).clamp_(0, 1)
        return torch.where(total <= radius, clamped, moved)

    def random_start(self) -> Tensor:
        """Uniform in the ball: signed exponentials divided by the sum of all and one more; then clamped to [0, 1]."""
        x, noise = self.x, self.cut(empty_rows(self.x).exponential_())
        total = noise.sum(dims_of(x), keepdim=True)
        noise *= self.epsilon / (total + torch.empty_like(total).exponential_())
        return self.project(x + noise.copysign_(empty_rows(x).uniform_(-1, 1)))

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


BALLS: dict[str, type[Ball]] = {ball.norm: ball for ball in (LinfBall, L2Ball, L1Ball)}
