"""The l2 attack of Carlini & Wagner (2017, arXiv 1608.04644, section VI.A): the smallest change that succeeds."""

import torch
from torch import Tensor, nn

from trl.attacks.base import ascent, check_positive, judge
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.losses import cw_margin
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.common.numbers import Count, NonNegative, Positive
from trl.nn.modes import frozen
from trl.threat import Ball, Threat, column

INSIDE = 0.99  # shrinks the start away from ±1, where tanh is so flat that values hardly move
LARGEST = 1e15  # largest gradient whose square Adam can hold in float32
ROUNDS = 10  # checks for early abort in each search: each one synchronises with the device
GAIN = 1e-4  # relative decrease of the objective required between checks


def cw_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 500,
    binary_steps: Count = 9,
    step_size: Positive = 0.01,
    initial_c: Positive = 1e-2,
    confidence: NonNegative = 0.0,
    abort_early: bool = True,
) -> Tensor:
    """Minimise ‖x_adv - x‖² + c·max(confidence - margin, 0) with Adam; binary search for the least c that succeeds.

    Tries `binary_steps` values of c per sample, each starting again from `x` for at most `steps` steps; `abort_early`
    stops when the objective no longer falls. The margin is that of `trl.attacks.cw`; success means meeting the
    criterion with a margin of at least `confidence`. Adam moves w, where x_adv = (tanh(w) + 1)/2, by about `step_size`
    per step.

    Returns the smallest success, projected onto the ball if it lies outside (it may then no longer succeed). A sample
    without success gets the last iterate, projected; one that is already a success is returned unchanged. Runs in full
    precision, even under autocast. TrlError unless the threat is l2.
    """
    check_criterion(criterion)
    check_positive(steps=steps, binary_steps=binary_steps, step_size=step_size, initial_c=initial_c)
    if threat.name != "l2":
        raise TrlError(f"cw_l2 needs an l2 threat, not {threat.name}; use norm l2, or another attack such as apgd")
    scored, viewed = criterion.loss(cw_margin), criterion.view(model)

    def minimise(ball: Ball, y: Tensor, c: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One search for a given c: the updated best images, their squared distances, and success, bool [n]."""
        x = ball.x
        w = torch.atanh((2 * x.clamp(0, 1) - 1) * INSIDE)
        adam = torch.optim.Adam([w], lr=step_size)
        succeeded, last = torch.zeros_like(y, dtype=torch.bool), torch.inf
        for step in range(steps):
            t = torch.tanh(w)
            x_adv = ball.confine((t + 1) / 2)
            gradient, margin, outputs = ascent(viewed, x_adv, y, scored, classes, ball)
            success = criterion.met(outputs, y) & (margin >= confidence)
            change = x_adv - x
            length = change.square().flatten(1).sum(1)
            better = (success & (length < least)) | least.isinf() & ~success
            best = torch.where(column(better, x), x_adv, best)
            least, succeeded = torch.where(better & success, length, least), succeeded | success
            force = torch.where(success, 0, c)
            if abort_early and step % max(1, steps // ROUNDS) == 0:
                objective = float((length + force * (confidence - margin)).sum())
                if objective > last * (1 - GAIN):
                    break
                last = objective
            slope = (2 * change - column(force, x) * gradient) * (1 - t.square()) / 2
            w.grad = slope.nan_to_num_(nan=0.0).clamp_(-LARGEST, LARGEST)
            adam.step()
        return best, least, succeeded

    x, y, classes = check_input(x, y)
    with frozen(model), torch.autocast(x.device.type, enabled=False):
        if len(x) == 0 or threat.epsilon == 0:
            return x.clone()
        met, margin = judge(viewed, x, y, criterion, scored, classes)
        left = (~(met & (margin >= confidence))).nonzero().squeeze(1)
        result = x.clone()
        if len(left) == 0:
            return result
        x, y, best, ball = x[left], y[left], x[left], threat.around(x)[left]
        least = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        c, low, high = least.new_full(least.shape, initial_c), torch.zeros_like(least), least.clone()
        for _ in range(binary_steps):
            best, least, succeeded = minimise(ball, y, c, best, least)
            low, high = torch.where(succeeded, low, c), torch.where(succeeded, c, high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        result[left] = ball.project(best)
        return result
