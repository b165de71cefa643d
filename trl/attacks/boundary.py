"""The decision boundary of the linearised model, which FAB and DeepFool step to."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl.attacks.criterion import Criterion, Misclassified, Targeted
from trl.attacks.losses import cw_margin
from trl.common.errors import TrlError
from trl.nn.logits import logits_of
from trl.threat import Ball, column, length

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # norm of a step: norm of the gradient that gives the steepest slope

SAFE = 100  # rounding steps of a logit: float32 logits differ by about 10 steps between batch sizes


class Boundary(NamedTuple):
    """Per sample, the hyperplane value + ⟨normal, d⟩ = 0 in steps d from x; positive means that x + d succeeds.

    `normal` [n,…], `value` [n], and the model's outputs [n,k] at x.
    """

    normal: Tensor
    value: Tensor
    outputs: Tensor


def rivals(outputs: Tensor, y: Tensor, criterion: Criterion, most: int | None = None) -> Tensor:
    """The `most` (None: all) classes other than y by falling logit, [n,m]; for `Targeted`, y itself.

    TrlError for any criterion but `Misclassified` and `Targeted`.
    """
    if isinstance(criterion, Targeted):
        return y[:, None]
    if not isinstance(criterion, Misclassified):
        raise TrlError(
            "FAB and DeepFool support only the criteria Misclassified and Targeted "
            f"(given {type(criterion).__name__}); use another attack, such as pgd"
        )
    others = outputs.shape[1] - 1
    return outputs.scatter(1, y[:, None], -torch.inf).topk(min(most or others, others), dim=1).indices


def safe_margin(outputs: Tensor, y: Tensor) -> Tensor:
    """The margin [n] that rounding, for example in another batch size, cannot undo; `outputs` are those at x.

    Relative to the logits of y and the highest other class, since models that mask gradients have logits of any size.
    """
    own, margin = outputs.gather(1, y[:, None]).squeeze(1), cw_margin(outputs, y)
    scale = torch.maximum(own.abs(), (own + margin).abs()).nan_to_num(nan=0.0, posinf=0.0)
    return SAFE * torch.finfo(outputs.dtype).eps * scale


def nearest_boundary(
    model: nn.Module, x: Tensor, y: Tensor, rivals: Tensor, criterion: Criterion, ball: Ball, classes: int
) -> Boundary:
    """The linearised boundary nearest to x, in the norm and the region of `ball`.

    Costs one forward pass, and one backward pass per rival.
    Candidates are the boundaries between y and its `rivals`; for `Targeted`, between y and the highest other class.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        outputs = logits_of(model, x, classes)
        if isinstance(criterion, Targeted):
            values = -cw_margin(outputs, y)[:, None]
        else:
            values = outputs.gather(1, rivals) - outputs.gather(1, y[:, None])
        totals = values.sum(0).unbind()
    outputs, values = outputs.detach(), values.detach()
    if not totals[0].requires_grad:
        warnings.warn("the model's logits have no gradient at its input: gradient attacks have no effect", stacklevel=4)
        return Boundary(torch.zeros_like(x), values[:, 0], outputs)
    normal = _gradient(totals[0], x, ball, keep=len(totals) > 1)
    if len(totals) == 1:
        return Boundary(normal, values[:, 0], outputs)
    value, distance = values[:, 0], _distance(values[:, 0], normal, ball.norm)
    for i, total in enumerate(totals[1:], start=1):
        gradient = _gradient(total, x, ball, keep=i + 1 < len(totals))
        this = _distance(values[:, i], gradient, ball.norm)
        nearer = this < distance
        value, distance = torch.where(nearer, values[:, i], value), torch.where(nearer, this, distance)
        normal = torch.lerp(normal, gradient, column(nearer.to(x.dtype), x))  # faster than where
    return Boundary(normal, value, outputs)


def _gradient(total: Tensor, x: Tensor, ball: Ball, keep: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(total, x, retain_graph=keep, materialize_grads=True)
    return ball.cut(gradient.nan_to_num(nan=0.0))


def _distance(value: Tensor, gradient: Tensor, norm: str) -> Tensor:
    slope = length(gradient, DUAL[norm]).flatten()
    return value.abs() / slope.clamp_(min=torch.finfo(slope.dtype).tiny)
