"""Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049); in l1, Croce & Hein 2021 (arXiv 2103.01208).

It uses the model's outputs, never a gradient.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trl.attacks.base import check_positive, judge
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.gradient_free import gradient_free
from trl.attacks.losses import get_loss
from trl.attacks.restarts import Kept
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.common.numbers import Count, Fraction
from trl.nn.logits import logits_of
from trl.nn.modes import frozen
from trl.threat import Ball, LinfBall, Threat

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the window area halves after these of 10,000 queries
PATIENCE = 10  # queries between checks for finished samples, each of which synchronises with the device
WORTHWHILE = 1 / 16  # fraction of finished samples from which they are dropped from the batch

Changes = list[tuple[Tensor, Tensor]]  # windows (views of the images) with their former content


@gradient_free
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    queries: Count = 5000,
    p_init: Fraction = 0.8,
    restarts: Count = 1,
    loss: Literal["ce", "cw", "dlr"] = "cw",
    rescale_schedule: bool = True,
) -> Tensor:
    """Random search: `queries` candidates, each a change in a square window, kept where `loss` rises.

    A sample is done once it meets the criterion; `x` itself is checked first, which does not count as a query. A sample
    that never succeeds ends at its highest loss. Windows cover a fraction of the image that falls from `p_init` on a
    schedule for 10,000 queries; `rescale_schedule` stretches it to `queries` (AutoAttack does not). All samples of a
    batch share the window, but draw their own signs. Further `restarts` run on samples that are not done.

    Inputs [n,d] are treated as 1×d pixels, where a window is a segment; [n,h,w] as one channel; in [n,…,h,w] all
    dimensions before h are channels. Runs in full precision, since autocast would lose small gains.
    """
    check_criterion(criterion)
    check_positive(queries=queries, p_init=p_init, restarts=restarts)
    scored, viewed = criterion.loss(get_loss(loss)), criterion.view(model)
    if threat.name not in MOVES:
        raise TrlError(f"square supports the norms {', '.join(MOVES)}, not {threat.name}; use one of these")
    start, propose = MOVES[threat.name]
    pace = 10_000 / queries if rescale_schedule else 1

    def ask(images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            outputs = logits_of(viewed, images.reshape(len(images), *x.shape[1:]), classes)
        return criterion.met(outputs, y), scored(outputs, y)

    def search(ball: Ball, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_adv = start(ball)
        done, highest = ask(x_adv, y)
        highest = highest.where(~highest.isnan(), -torch.inf)
        left, ended = torch.arange(len(y), device=y.device), (x_adv.clone(), done.clone(), highest.clone())
        for query in range(queries - 1):
            if query % PATIENCE == 0 and (over := int(done.sum())) >= WORTHWHILE * len(done):
                if over == len(done):
                    break
                _note(ended, left, (x_adv, done, highest))
                still = (~done).nonzero().squeeze(1)
                left, y, x_adv, done, highest = (t[still] for t in (left, y, x_adv, done, highest))
                ball = ball[still]
            share = p_init / 2 ** sum(query * pace > halving for halving in HALVINGS)
            changes = propose(ball, x_adv, share)
            met, value = ask(x_adv, y)
            better = ((value > highest) | met) & ~done
            done, highest = done | met, torch.where(better, value, highest)
            for window, before in changes:
                window.copy_(torch.where(better[:, None, None, None], window, before))
        _note(ended, left, (x_adv, done, highest))
        return ended

    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0 or threat.epsilon == 0:
            return x.clone()
        ball = threat.around(x).reshape(*_image_shape(x))
        met, value = judge(viewed, x, y, criterion, scored, classes)
        kept = Kept(ball.x.clone(), met, torch.full_like(value, -torch.inf))
        for _ in range(restarts):
            left = kept.left()
            if len(left) == 0:
                break
            x_adv, _, value = search(ball[left], y[left])
            met, _ = judge(viewed, x_adv.reshape(x[left].shape), y[left], criterion, scored, classes)
            kept.note(left, x_adv, met, value)
        return torch.empty_like(x).copy_(kept.images.reshape(x.shape))


def _note(wholes: tuple[Tensor, ...], rows: Tensor, parts: tuple[Tensor, ...]) -> None:
    for whole, part in zip(wholes, parts, strict=True):
        whole[rows] = part


def _image_shape(x: Tensor) -> tuple[int, int, int, int]:
    """[n,c,h,w] for any shape of x: missing dimensions are 1, extra ones count as channels."""
    height, width = (1, *x.shape[1:])[-2:]
    return len(x), x.shape[1:-2].numel(), height, width


def _signs(like: Tensor, width: int = 1) -> Tensor:
    """Random signs, -1 or 1: [n,c,1,width]."""
    shape = (*like.shape[:2], 1, width)
    return torch.rand(shape, dtype=like.dtype, device=like.device).sub_(0.5).sign_()


def _window(x: Tensor, height: int, width: int) -> tuple[EllipsisType, slice, slice]:
    """A window of that size at a uniformly random place."""
    top = int(torch.randint(x.shape[2] - height + 1, ()))
    left = int(torch.randint(x.shape[3] - width + 1, ()))
    return ..., slice(top, top + height), slice(left, left + width)


def _sides(x: Tensor, side: int) -> tuple[int, int]:
    """Height and width of a square or, where the image is too narrow, of a rectangle of about the same area."""
    height, width = x.shape[2:]
    return min(height, round(side**2 / min(side, width))), min(width, round(side**2 / min(side, height)))


# --- linf: every value is at an end of its range; a window moves to one end, per sample and channel


def _stripes(ball: LinfBall) -> Tensor:
    """Vertical stripes (section 3.3)."""
    return ball.confine(ball.x + ball.epsilon * _signs(ball.x, ball.x.shape[3]))


def _flip(ball: LinfBall, x_adv: Tensor, share: float) -> Changes:
    """Algorithm 2. As in the authors' code, a window that is already at the drawn end moves to the other one."""
    window = _window(x_adv, *_sides(x_adv, max(1, round(math.sqrt(share * x_adv.shape[2:].numel())))))
    here = x_adv[window]
    before, (low, high) = here.clone(), (end[window] for end in (ball.low, ball.high))
    up = _signs(x_adv) > 0
    same = (torch.where(up, high, low) == before).flatten(1).all(1)
    here.copy_(torch.where(up ^ same[:, None, None, None], high, low))
    return [(here, before)]


# --- l2 and l1: perturbation moves from one window to another, so that its norm stays epsilon


@lru_cache(maxsize=64)
def _dipole(height: int, width: int, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A pyramid above its negative (section 3.4), with norm 1: [height,width]."""
    halves = [_pyramid(rows, width, order) for rows in (height // 2, height - height // 2)]
    dipole = torch.cat([half / _power(half, order) ** (1 / order) for half in (halves[0], -halves[1])])
    return (dipole / _power(dipole, order) ** (1 / order)).to(device, dtype)


def _pyramid(height: int, width: int, order: int) -> Tensor:
    """Concentric squares stacked on one another, the k-th with weight 1/k² for l2 and 1/k⁴ for l1."""
    down, right = (torch.arange(side).sub(side // 2).abs() for side in (height, width))
    weights = torch.arange(1, 2 + max(height, width) // 2, dtype=torch.float64) ** (-4 / order)
    return weights.flip(0).cumsum(0).flip(0)[torch.maximum(down[:, None], right)]


def _random_dipole(x: Tensor, height: int, width: int, order: int) -> Tensor:
    """A dipole, vertical or horizontal at random where both fit, with random signs: [n,c,height,width]."""
    upright = width == 1 or (height > 1 and int(torch.randint(2, ())))
    sides = (height, width) if upright else (width, height)
    dipole = _dipole(*sides, order, x.dtype, x.device)
    return _signs(x) * (dipole if upright else dipole.T)


def _power(delta: Tensor, order: int, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Sum of |delta|^order over `dims`, which are kept with size 1."""
    return (delta.abs() if order == 1 else delta.square()).sum(dims, keepdim=True)


def _placed(delta: Tensor, centre: Tensor, power: Tensor | float, order: int, dims: tuple[int, ...]) -> Tensor:
    """`centre + delta` in [0, 1], with delta scaled to `power`, then rescaled to make up for clipping.

    The second scaling is not in the papers; it makes candidates use all of epsilon.
    """
    scaled = delta * (power / _power(delta, order, dims).clamp_(min=1e-12)) ** (1 / order)
    kept = _power((centre + scaled).clamp_(0, 1).sub_(centre), order, dims)
    scaled *= (power / kept.clamp_(min=1e-12)) ** (1 / order)
    return scaled.add_(centre).clamp_(0, 1)


def _radius(x: Tensor, epsilon: float) -> float:
    """Epsilon minus a margin for rounding."""
    precision = torch.finfo(x.dtype).eps
    return max(0.0, epsilon * (1 - 10 * precision) - math.sqrt(x[0].numel()) * precision / 2)


def _tiles(ball: Ball, order: int) -> Tensor:
    """Dipoles side by side, five along the shorter side."""
    x = ball.x
    delta, (height, width) = torch.zeros_like(x), x.shape[2:]
    side = max(1, min(height, width) // 5)
    for top in range(height % side // 2, height - side + 1, side):
        for left in range(width % side // 2, width - side + 1, side):
            delta[..., top : top + side, left : left + side] = _random_dipole(x, side, side, order)
    return _placed(ball.cut(delta), x, _radius(x, ball.epsilon) ** order, order, (1, 2, 3))


def _shift(ball: Ball, x_adv: Tensor, share: float, order: int) -> Changes:
    """Algorithm 3: move the change of one window to another, adding a dipole and any unused budget.

    Per channel. With c > 1 channels, the l1 form adds c times as much and projects, which makes changes sparse.
    """
    x = ball.x
    side = max(3, round(math.sqrt(share * x.shape[2:].numel())))
    sides = _sides(x, side + 1 - side % 2)
    gaining, losing = _window(x, *sides), _window(x, *sides)
    here, there, centre = x_adv[gaining], x_adv[losing], x[gaining]
    project = order == 1 and x.shape[1] > 1
    before, before_there, before_all = here.clone(), there.clone(), x_adv.clone() if project else x_adv
    unused = _radius(x, ball.epsilon) ** order - _power(x_adv - x, order, (1, 2, 3))
    own = before - centre
    own /= (_power(own, order) ** (1 / order)).clamp_(min=1e-12)
    there.copy_(x[losing])
    moved = _power(before_there - x[losing], order) + _power(here - centre, order)
    power = (moved + unused / x.shape[1]).clamp_(min=0) * (x.shape[1] if project else 1)
    delta = ball[gaining].cut(own + _random_dipole(x, *sides, order))
    here.copy_(_placed(delta, centre, power, order, (2, 3)))
    if project:
        x_adv.copy_(ball.project(x_adv))
        return [(x_adv, before_all)]
    return [(there, before_there), (here, before)]


Start = Callable[[Any], Tensor]  # of a ball in that norm
Move = Callable[[Any, Tensor, float], Changes]

MOVES: dict[str, tuple[Start, Move]] = {
    "linf": (_stripes, _flip),
    "l2": (partial(_tiles, order=2), partial(_shift, order=2)),
    "l1": (partial(_tiles, order=1), partial(_shift, order=1)),
}
