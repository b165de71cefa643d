"""Linear problems within a ball and the box [0, 1], in linf, l2 and l1: the steps of FAB, DeepFool and FGSM.

Works on a batch of points [n,…], each with its own hyperplane. A few passes over the values replace a sort, and nothing
is read back from a GPU.
"""

import math

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.threat import column, dims_of

BLOCK = 2**17  # values that the CPU processes at once, so that all passes stay in its cache
ROUNDS = 20  # Newton iterations at most: each makes residual times slope 4 times smaller; 3 to 6 are usual


def step_to_hyperplane(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """The smallest step d in `norm` with value + ⟨normal, d⟩ = 0 and x + d in [0, 1]: [n,…], like x and `normal`.

    `value` [n] is the signed height of x above its hyperplane. Where the box does not reach the hyperplane, d goes to
    the corner closest to it (Croce & Hein 2020, arXiv 1907.02044, appendix A). Values where `normal` is 0 do not move.
    TrlError for any norm but linf, l2 and l1.
    """
    if norm not in _STEPS:
        raise TrlError(f"unknown norm {norm!r} for a step to a hyperplane; use {', '.join(_STEPS)}")
    blocks = 1 if x.is_cuda else math.ceil(x.numel() / BLOCK)
    if blocks <= 1:
        return _step(x, normal, value, norm)
    parts = (t.tensor_split(blocks) for t in (x, normal, value))
    return torch.cat([_step(x, normal, value, norm) for x, normal, value in zip(*parts, strict=True)])


def steepest_step(x: Tensor, gradient: Tensor, epsilon: float, norm: str) -> Tensor:
    """The step d of at most `epsilon` in `norm`, with x + d in [0, 1], that maximises ⟨gradient, d⟩."""
    room, weight = _room(x, gradient), _scaled(gradient.abs())[0]
    amount = column(x.new_full((len(x),), epsilon), x)
    if norm == "linf":
        size = room.clamp(max=epsilon)
    elif norm == "l1":
        size = _in_turn(room, weight, torch.ones_like(weight), amount)
    else:  # proportional to the weights until the box stops a value: squares are piecewise linear in the squared level
        breaks = room / weight.clamp(min=1e-15)
        level = _level(breaks.square(), weight.square(), amount.square()).sqrt_()
        size = torch.minimum(room, weight * level)
    return size * gradient.sign()


def _step(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    value = column(value.to(x.dtype).nan_to_num(nan=0.0), x)
    weight, scale = _scaled(normal.abs())
    direction = normal * -value.sign()
    return _STEPS[norm](_room(x, direction), weight, value.abs() / scale).mul_(direction.sign_())


def _scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weights ≥ 0 divided by each sample's largest, and that largest weight."""
    scale = weight.amax(dims_of(weight), keepdim=True).clamp_(min=torch.finfo(weight.dtype).tiny)
    return weight.div_(scale), scale


def _room(x: Tensor, direction: Tensor) -> Tensor:
    """How far each value can move along `direction` before it reaches 0 or 1."""
    return torch.gt(direction, 0, out=torch.empty_like(x)).sub_(x).abs_()


def _linf(room: Tensor, weight: Tensor, amount: Tensor) -> Tensor:
    """All values move equally far, unless the box stops them."""
    return torch.minimum(room, _level(room, weight, amount))


def _l2(room: Tensor, weight: Tensor, amount: Tensor) -> Tensor:
    """Each value moves in proportion to its weight, unless the box stops it."""
    slope = weight.square()
    breaks = room / weight.clamp(min=1e-15)  # lower weights do not contribute to the sums
    return torch.minimum(room, weight.mul_(_level(breaks, slope, amount)))


def _level(breaks: Tensor, slope: Tensor, amount: Tensor) -> Tensor:
    """The level r ≥ 0 with Σ slope·min(r, breaks) = amount, or a huge one if there is no solution: [n,1,…].

    The sum is concave and piecewise linear in r, so Newton's method rises monotonically from 0, and is exact once it
    reaches the linear piece of the root.
    """
    dims, part = dims_of(breaks), slope * breaks
    lacking = amount - part.sum(dims, keepdim=True)  # what is missing even with all values at their breaks
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
    """Values move all the way one after another, in order of falling weight."""
    return _in_turn(room, weight, weight, amount)


def _in_turn(room: Tensor, weight: Tensor, price: Tensor, amount: Tensor) -> Tensor:
    """In order of falling weight, each value moves all the way, at its `price`, until `amount` is spent."""
    shape, (room, weight, price, amount) = room.shape, (t.flatten(1) for t in (room, weight, price, amount))
    order = weight.argsort(descending=True)
    room, price = room.gather(1, order), price.gather(1, order)
    cost = price * room
    left = amount - cost.cumsum(1).sub_(cost)
    steps = left.div_(price.clamp_(min=torch.finfo(price.dtype).tiny)).clamp_(min=0)
    return torch.empty_like(room).scatter_(1, order, torch.minimum(steps, room)).view(shape)


_STEPS = {"linf": _linf, "l2": _l2, "l1": _l1}
