"""What gradient attacks share: the gradient of a loss at the input, and the verdict per sample."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl.attacks.criterion import Criterion, Orthogonal
from trl.attacks.eot import EoT
from trl.attacks.losses import Loss
from trl.common.errors import TrlError
from trl.nn.logits import logits_of
from trl.threat import Ball

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) → x_adv


def check_positive(**options: float | None) -> None:
    """TrlError unless every option is above 0 or None."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise TrlError(f"{name} must be above 0, not {value!r}")


class Ascent(NamedTuple):
    """One forward and backward pass: gradient at the input [n,…], loss [n] and outputs [n,k]."""

    gradient: Tensor
    loss: Tensor
    outputs: Tensor


def ascent(model: nn.Module, x_adv: Tensor, y: Tensor, loss: Loss, classes: int, ball: Ball | None = None) -> Ascent:
    """The loss at `x_adv` and its gradient; NaN in the gradient, for example from infinite logits, becomes 0.

    So does the gradient outside the region of `ball`, if that is given.

    For an `Orthogonal` loss the gradient is replaced by its `direction`, which takes two backward passes. For an `EoT`
    all values are means over its draws, computed with one draw in memory at a time.
    """
    if isinstance(model, EoT):
        sums = ascent(model.model, x_adv, y, loss, classes, ball)
        for _ in range(model.samples - 1):
            sums = Ascent(*map(torch.add, sums, ascent(model.model, x_adv, y, loss, classes, ball)))
        return Ascent(*(part / model.samples for part in sums))
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        outputs = logits_of(model, x_adv, classes)
        values = loss(outputs, y)
        total = values.sum()
    if not total.requires_grad:
        warnings.warn("the model's logits have no gradient at its input: gradient attacks have no effect", stacklevel=3)
        return Ascent(torch.zeros_like(x_adv), values, outputs)
    if isinstance(loss, Orthogonal):
        with torch.enable_grad():
            parts = [part(outputs, y).sum() for part in (loss.first, loss.second)]
        first, second = (_gradient(part, x_adv, ball, keep=part is parts[0]) for part in parts)
        gradient = loss.direction(first, second, loss.first_met(outputs, y))
    else:
        gradient = _gradient(total, x_adv, ball)
    return Ascent(gradient, values.detach(), outputs.detach())


def _gradient(total: Tensor, x: Tensor, ball: Ball | None, keep: bool = False) -> Tensor:
    """The gradient at x; zero where it is missing or NaN, and outside the ball's region. `keep` retains the graph."""
    (gradient,) = torch.autograd.grad(total, x, retain_graph=keep, materialize_grads=True)
    gradient = gradient.nan_to_num(nan=0.0)
    return ball.cut(gradient) if ball else gradient


def judge(
    model: nn.Module, x_adv: Tensor, y: Tensor, criterion: Criterion, loss: Loss, classes: int
) -> tuple[Tensor, Tensor]:
    """Success per sample (bool [n]) and the loss [n]; in full precision even under autocast."""
    with torch.autocast(x_adv.device.type, enabled=False):
        outputs = logits_of(model, x_adv, classes)
        return criterion.met(outputs, y), loss(outputs, y)
