"""Projected gradient ascent: PGD (Madry et al. 2018, arXiv 1706.06083), with BIM and CW as special cases."""

from typing import Literal

import torch
from torch import Tensor, nn

from trl.attacks.base import ascent, check_positive, judge
from trl.attacks.criterion import MISCLASSIFIED, Criterion, Targeted, check_criterion
from trl.attacks.losses import Loss, divergence_from, get_loss
from trl.attacks.restarts import Kept
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.common.numbers import Count, Positive
from trl.nn.logits import logits_of
from trl.nn.modes import frozen
from trl.nn.precision import searches_in_half
from trl.threat import Ball, Threat, column

NEAR = 0.001  # standard deviation of the start beside x, as in the released code of TRADES


@searches_in_half
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
    restarts: Count = 1,
    random_start: bool = True,
    loss: Literal["ce", "cw", "dlr", "kl"] = "ce",
) -> Tensor:
    """`steps` projected steps of steepest ascent on `loss`, from a random point of the ball or from `x`.

    `step_size` None means 2.5·epsilon/steps. `loss` is cross-entropy, the Carlini & Wagner margin, DLR, or the KL
    divergence from the prediction at x, whatever y (`kl`: the inner maximisation of TRADES, Zhang et al. 2019, arXiv
    1901.08573). Without a random start, `kl` begins at x + 0.001·N(0, 1), since its gradient at x is zero.

    One restart costs exactly `steps` gradients and returns the last iterate. Each further restart runs on the samples
    on which no earlier one succeeded; a sample keeps the first result that meets the criterion in full precision, else
    the one with the highest loss. If the criterion has detectors, a restart returns the iterate with the highest loss
    instead, because the last one oscillates between the two goals. See the package for the rest.
    """
    check_criterion(criterion)
    check_positive(steps=steps, step_size=step_size, restarts=restarts)
    fixed, viewed = None if loss == "kl" else get_loss(loss), criterion.view(model)
    if loss == "kl" and isinstance(criterion, Targeted):
        raise TrlError("loss kl leads away from the prediction at x, towards no target: use loss ce, cw or dlr")
    if restarts > 1 and not random_start and loss != "kl":
        raise TrlError("restarts from the same point all give the same result; use random_start or restarts=1")
    step = 2.5 * threat.epsilon / steps if step_size is None else step_size

    def loss_around(x: Tensor) -> Loss:
        return criterion.loss(fixed or divergence_from(logits_of(viewed, x, classes)))

    def run(ball: Ball, y: Tensor) -> Tensor:
        x_adv, ascended = ball.x, loss_around(ball.x)
        if random_start:
            x_adv = ball.random_start()
        elif loss == "kl":
            x_adv = ball.project(x_adv + NEAR * torch.randn_like(x_adv, memory_format=torch.contiguous_format))
        swings = len(criterion.detectors) > 0
        best, highest = x_adv, x_adv.new_full((len(y),), -torch.inf, dtype=torch.float64)
        for _ in range(steps):
            found = ascent(viewed, x_adv, y, ascended, classes, ball)
            if swings:
                best = torch.where(column(found.loss > highest, x_adv), x_adv, best)
                highest = torch.maximum(highest, found.loss)
            x_adv = ball.project(ball.ascend(x_adv, found.gradient, step))
        if not swings:
            return x_adv
        _, last = judge(viewed, x_adv, y, criterion, ascended, classes)
        return torch.where(column(last > highest, x_adv), x_adv, best)

    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        ball = threat.around(x)
        best = run(ball, y)
        if restarts == 1:
            return best
        kept = Kept(best, *judge(viewed, best, y, criterion, loss_around(x), classes))
        for _ in range(restarts - 1):
            left = kept.left()
            if len(left) == 0:
                break
            x_adv = run(ball[left], y[left])
            kept.note(left, x_adv, *judge(viewed, x_adv, y[left], criterion, loss_around(x[left]), classes))
        return kept.images


@searches_in_half
def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
) -> Tensor:
    """BIM, the basic iterative method (Kurakin et al. 2017, arXiv 1607.02533): `pgd` from `x`, on cross-entropy."""
    return pgd(model, x, y, threat, criterion, steps=steps, step_size=step_size, random_start=False)


@searches_in_half
def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
    restarts: Count = 1,
    random_start: bool = True,
) -> Tensor:
    """CW as in TLA and Madry et al.: `pgd` on the margin of Carlini & Wagner (2017, arXiv 1608.04644)."""
    return pgd(
        model,
        x,
        y,
        threat,
        criterion,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        random_start=random_start,
        loss="cw",
    )
