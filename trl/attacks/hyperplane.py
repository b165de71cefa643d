"""The nearest point of a hyperplane inside the box [0, 1], in the norms linf, l2 and l1: the step of FAB and DeepFool.

A batch of points [n,…], each with its own hyperplane. A few passes over the values take the place of sorting them, and
nothing is read back from a GPU.
"""

import math

import torch
from torch import Tensor

from trl.errors import TrlError
from trl.threat import column, dims_of

BLOCK = 2**17  # values that the CPU works on at once, so that all passes over them stay in its cache
ROUNDS = 20  # at most, of Newton's method: each one makes residual times slope 4 times smaller, and 3 to 6 are usual


def step_to_hyperplane(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """The smallest step d in `norm` with value + ⟨normal, d⟩ = 0 and x + d in [0, 1]: [n,…], like x and `normal`.

    `value` [n] is the height of x over its hyperplane, of either sign. Where the box does not reach the hyperplane,
    d goes to the corner that comes closest to it (Croce & Hein 2020, arXiv 1907.02044, appendix A). A value of `normal`
    that is 0 moves nothing. TrlError for another norm than linf, l2 and l1.
    """
    if norm not in _STEPS:
        raise TrlError(f"no steps to a hyperplane in the norm {norm!r}; use {', '.join(_STEPS)}")
    blocks = 1 if x.is_cuda else math.ceil(x.numel() / BLOCK)
    if blocks <= 1:
        return _step(x, normal, value, norm)
    parts = (t.tensor_split(blocks) for t in (x, normal, value))
    return torch.cat([_step(x, normal, value, norm) for x, normal, value in zip(*parts, strict=True)])


def _step(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    weight, value = normal.abs(), column(value.to(x.dtype).nan_to_num(nan=0.0), x)
    scale = weight.amax(dims_of(x), keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)
    direction = normal * -value.sign()
    # how far each value can go: up to 1 if it is to rise, down to 0 if it is to fall
    room = torch.gt(direction, 0, out=torch.empty_like(x)).sub_(x).abs_()
    return _STEPS[norm](room, weight.div_(scale), value.abs() / scale).mul_(direction.sign_())


def _linf(room: Tensor, weight: Tensor, amount: Tensor) -> Tensor:
    """All values move alike, as far as they can."""
    return torch.minimum(room, _level(room, weight, amount))


def _l2(room: Tensor, weight: Tensor, amount: Tensor) -> Tensor:
    """Each value moves in proportion to its weight, as far as it can."""
    slope = weight.square()
    breaks = room / weight.clamp(min=1e-15)  # any lower weight has no part in the sums
    return torch.minimum(room, weight.mul_(_level(breaks, slope, amount)))


def _level(breaks: Tensor, slope: Tensor, amount: Tensor) -> Tensor:
    """The level r ≥ 0 with Σ slope·min(r, breaks) = amount, or a huge one if there is none: [n,1,…].

    The sum is concave and piecewise linear in r. So Newton's method rises from 0 to the root, and ends at it as soon as
    it is on the same piece.
    """
    dims, part = dims_of(breaks), slope * breaks
    lacking = amount - part.sum(dims, keepdim=True)  # once all values are at their breaks
    level = torch.zeros_like(amount)
    for _ in range(ROUNDS):
        torch.gt(breaks, level, out=part).mul_(slope)
        rising = part.sum(dims, keepdim=True)
        reached = torch.fmax(level, (part.mul_(breaks).sum(dims, keepdim=True) + lacking) / rising)  # not 0/0
        if not level.is_cuda and torch.equal(reached, level):
            break
        level = reached
    return level.masked_fill_(lacking >= 0, torch.inf).clamp_(max=torch.finfo(level.dtype).max)  # inf·0 is not 0


def _l1(room: Tensor, weight: Tensor, amount: Tensor) -> Tensor:
    """The values of greatest weight go all the way, one after the other."""
    shape, (room, weight, amount) = room.shape, (t.flatten(1) for t in (room, weight, amount))
    weight, order = weight.sort(descending=True)
    room = room.gather(1, order)
    gain = weight * room
    left = amount - gain.cumsum(1).sub_(gain)
    steps = left.div_(weight.clamp_(min=torch.finfo(weight.dtype).tiny)).clamp_(min=0)
    return torch.empty_like(room).scatter_(1, order, torch.minimum(steps, room)).view(shape)


_STEPS = {"linf": _linf, "l2": _l2, "l1": _l1}
