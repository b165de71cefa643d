"""APGD, which adapts its step size (Croce & Hein 2020, arXiv 2003.01690, algorithm 1), and its targeted variant.

In L1 it is APGD-L1 with adaptive sparsity (Croce & Hein 2021, arXiv 2103.01208, algorithm 1). Where the papers and
the authors' code differ, this follows the code: it produced the published robust accuracies.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise, repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trl.attacks.base import ascent, check_positive, judge
from trl.attacks.criterion import MISCLASSIFIED, Criterion, Targeted, check_criterion
from trl.attacks.domains import FoolsAll
from trl.attacks.losses import Loss, cross_entropy, get_loss
from trl.attacks.restarts import Kept
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.common.numbers import Count
from trl.nn.logits import logits_of
from trl.nn.modes import frozen
from trl.nn.precision import searches_in_half
from trl.threat import Ball, L1Ball, Threat, column, length

ROUGH = 0.5  # share of the steps that use the caller's autocast: half precision is too coarse for the last ones
NOISE = 0.004  # relative to an image's largest gradient: about the rounding error of half precision

Objective = Callable[[Tensor], Loss]  # the target classes [n] → the loss to use


@searches_in_half
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 100,
    restarts: Count = 1,
    loss: Literal["ce", "dlr", "cw"] = "ce",
) -> Tensor:
    """`steps` momentum steps from a random point of the ball; the step size halves when progress stalls.

    `loss` is cross-entropy, DLR, or the Carlini & Wagner margin. DLR is the weakest for targeted attacks: it is flat
    where the target class ranks third. A sample is done as soon as `x` or an iterate meets the criterion in full
    precision. Later restarts run on the remaining samples; those that never succeed get the iterate with the highest
    loss. A restart costs at most `steps` gradients.
    """
    check_criterion(criterion)
    check_positive(steps=steps, restarts=restarts)
    ascended = get_loss(loss)
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        runs = _Runs(model, x, y, threat, criterion, classes, steps)
        for _ in range(restarts):
            runs.run(lambda _: ascended, y)
        return runs.kept.images


@searches_in_half
def apgd_t(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 100,
    targets: Count = 9,
) -> Tensor:
    """APGD-T: `apgd` on the targeted DLR loss, towards each of the `targets` most likely other classes at `x` in turn.

    Fewer targets if the model has fewer other classes. Each run attacks the samples on which no earlier run succeeded.
    In linf a little noise is added to the gradients, which the paper does not do: where a network masks its gradients,
    the signs of the smallest ones would trap the search. See `apgd` for the rest.
    """
    check_criterion(criterion)
    check_positive(steps=steps, targets=targets)
    if isinstance(criterion, Targeted):
        raise TrlError("apgd_t picks its own target classes; use apgd with Targeted() to reach a given class")
    if isinstance(criterion, FoolsAll):
        raise TrlError("apgd_t picks target classes of one model; use apgd or minmax with FoolsAll")
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        runs = _Runs(model, x, y, threat, criterion, classes, steps)
        others = logits_of(model, x, classes).scatter(1, y[:, None], -torch.inf)
        for target in others.topk(min(targets, others.shape[1] - 1)).indices.unbind(1):
            runs.run(lambda target: lambda logits, y: targeted_dlr(logits, y, target), target, noisy=True)
        return runs.kept.images


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_target - z_y) / (z_π1 - (z_π3 + z_π4)/2) (Croce & Hein 2020, equation 7), per sample.

    With fewer than four classes there is no fourth logit, and substituting another one makes the ratio constant for
    some targets: the numerator alone is used then.
    """
    margin = logits.gather(1, target[:, None]).squeeze(1) - logits.gather(1, y[:, None]).squeeze(1)
    if logits.shape[1] < 4:
        return margin
    top = logits.topk(4, dim=1).values
    return margin / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


class _Runs:
    """Successive runs, each on the samples not yet fooled; `kept` holds the best result per sample."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, criterion: Criterion, classes: int, steps: int
    ) -> None:
        self.model, self.y, self.ball, self.criterion = criterion.view(model), y, threat.around(x), criterion
        self.classes, self.steps = classes, steps
        met, loss = judge(self.model, x, y, criterion, criterion.loss(cross_entropy), classes)
        self.kept = Kept(x.clamp(0, 1), met, torch.full_like(loss, -torch.inf))

    def run(self, objective: Objective, target: Tensor, *, noisy: bool = False) -> None:
        """One more run, towards `target` [n] if the `objective` uses it; `noisy`: see `_Noisy`."""
        rows = self.kept.left()
        if len(rows) == 0:
            return
        ball, target = self.ball[rows], target[rows]
        if ball.norm != "l1":
            climb = _Noisy if noisy else _Momentum
            climb(self, ball, objective, rows, target, ball.random_start(), final=True).run(self.steps)
            return
        # the second paper's multi-epsilon scheme: 3, 2 and 1 times epsilon for 30, 30 and 40 % of the steps
        x_adv, ends = ball.x + torch.randn_like(ball.x), (0, self.steps * 3 // 10, self.steps * 6 // 10, self.steps)
        for factor, (begin, end) in zip((3, 2, 1), pairwise(ends), strict=True):
            larger = ball.at(factor * ball.epsilon)
            search = _Sparse(self, larger, objective, rows, target, larger.project(x_adv), final=factor == 1)
            search.run(end - begin)
            x_adv = search.x_best

    def judge(self, rows: Tensor, x_adv: Tensor, loss: Loss) -> Tensor:
        """Whether the results `x_adv` for the samples `rows` meet the criterion, bool; keeps those that improve."""
        met, value = judge(self.model, x_adv, self.y[rows], self.criterion, loss, self.classes)
        self.kept.note(rows, x_adv, met, value)
        return met


class _Search(ABC):
    """One search from a starting point. Every tensor it holds is per sample, so finished samples can be dropped.

    Only in the `final` of several phases does a sample that meets the criterion count as done; results go to `runs`.
    """

    largest_step: float  # in epsilons

    def __init__(
        self,
        runs: _Runs,
        ball: Ball,
        objective: Objective,
        rows: Tensor,
        target: Tensor,
        start: Tensor,
        *,
        final: bool,
    ) -> None:
        self.runs, self.ball, self.objective, self.final = runs, ball, objective, final
        self.rows, self.target = rows, target
        self.y, self.x_adv, self.x_best = runs.y[rows], start, start.clone()
        self.gradient, self.best_gradient = torch.zeros_like(start), torch.zeros_like(start)
        self.loss = self.highest = torch.full_like(runs.kept.highest[rows], -torch.inf)
        self.met, self.rises = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows)
        self.size = torch.full_like(column(self.loss, start), self.largest_step * ball.epsilon, dtype=start.dtype)
        self._prepare()

    def run(self, steps: int) -> None:
        """Take `steps` steps; stop early once every sample is done."""
        if steps == 0:
            return
        autocast, self.precise = torch.is_autocast_enabled(self.x_adv.device.type), False
        self._look(ascend=True)
        self.rises.zero_()
        periods = self.periods(steps)
        checkpoint = period = next(periods)
        for step in range(1, steps + 1):
            if autocast and step == int(ROUGH * steps) + 1:
                self._sharpen()
            self.move(step)
            self._look(ascend=step < steps)
            if self.final and (step == steps or step & (step - 1) == 0):  # rarely: it synchronises with the device
                self._settle(everything=step == steps)
                if len(self.rows) == 0:
                    return
            if step == checkpoint:
                self.adapt(period)
                period = next(periods)
                checkpoint += period

    @abstractmethod
    def periods(self, steps: int) -> Iterator[int]:
        """Endless: the number of steps between successive checkpoints, for a run of `steps`."""

    @abstractmethod
    def move(self, step: int) -> None:
        """Compute the next iterate."""

    @abstractmethod
    def adapt(self, period: int) -> None:
        """Adapt the step size at a checkpoint, `period` steps after the last one."""

    def _prepare(self) -> None:
        """Rebuild what depends on the remaining samples but is not a per-sample tensor."""
        self.ascended = self.runs.criterion.loss(self.objective(self.target))

    def _sharpen(self) -> None:
        """Continue in full precision from the best iterates, and forget the losses in half precision."""
        self.precise = True
        self.x_adv, self.met = self.x_best.clone(), torch.zeros_like(self.met)
        self.highest = torch.full_like(self.highest, -torch.inf)
        self._look(ascend=True)

    def _look(self, ascend: bool) -> None:
        """Evaluate the iterate; keep it if it meets the criterion, or if none did yet and its loss is the highest."""
        runs = self.runs
        with torch.autocast(self.x_adv.device.type, enabled=False) if self.precise else nullcontext():
            if ascend:
                self.gradient, loss, outputs = ascent(
                    runs.model, self.x_adv, self.y, self.ascended, runs.classes, self.ball
                )
            else:
                outputs = logits_of(runs.model, self.x_adv, runs.classes)
                loss = self.ascended(outputs, self.y)
        loss, met = loss.nan_to_num(nan=-torch.inf), runs.criterion.met(outputs, self.y) & self.final
        self.rises += loss > self.loss
        self.loss, higher = loss, loss > self.highest
        better = torch.where(self.met, met & higher, met | higher)
        self.met = self.met | met
        self.highest = torch.where(better, self.loss, self.highest)
        better = column(better, self.x_adv)
        torch.where(better, self.x_adv, self.x_best, out=self.x_best)
        torch.where(better, self.gradient, self.best_gradient, out=self.best_gradient)

    def _restart(self, where: Tensor) -> None:
        """Return to the best iterate for the samples selected by `where`, bool [n]."""
        where = column(where, self.x_adv)
        self.x_adv = torch.where(where, self.x_best, self.x_adv)
        self.gradient = torch.where(where, self.best_gradient, self.gradient)

    def _settle(self, everything: bool) -> None:
        """Verify the samples that seem done (or `everything`) and drop those that are."""
        found = (self.met | everything).nonzero().squeeze(1)
        if len(found) == 0:
            return
        target, x_adv = self.target[found], self.x_best[found]
        met = self.runs.judge(self.rows[found], x_adv, self.runs.criterion.loss(self.objective(target)))
        self.met[found] = met
        left = (~(self.met | everything)).nonzero().squeeze(1)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[left])
        self.ball = self.ball[left]
        self._prepare()


class _Momentum(_Search):
    """APGD: momentum steps; where the loss stops rising, halve the step size and return to the best iterate."""

    largest_step = 2.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.x_old, self.halved = self.x_adv, torch.ones_like(self.met)
        self.highest_before = self.highest

    def periods(self, steps: int) -> Iterator[int]:
        """22 % of the steps, then 3 % less each time, down to 6 %."""
        period, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
        while True:
            yield period
            period = max(period - shorter, shortest)

    def move(self, step: int) -> None:
        """x ← P(x + ¾·(P(x + size·direction) - x) + ¼·(x - x_old)); the first step has no momentum."""
        ahead = self.ball.project(self.ball.ascend(self.x_adv, self.gradient, self.size))
        if step > 1:
            ahead = self.ball.project(ahead.mul_(0.75).add_(self.x_adv, alpha=0.5).sub_(self.x_old, alpha=0.25))
        self.x_old, self.x_adv = self.x_adv, ahead

    def adapt(self, period: int) -> None:
        """Halve where at most ¾ of the steps raised the loss, or its maximum did not rise and the size was not halved.

        As in the authors' code, the first step after a return is compared with the iterate before the return.
        """
        self.halved = (self.rises <= 0.75 * period) | (~self.halved & (self.highest <= self.highest_before))
        self.highest_before = self.highest
        self.rises.zero_()
        self._restart(self.halved)
        self.size = torch.where(column(self.halved, self.x_adv), self.size / 2, self.size)


class _Noisy(_Momentum):
    """The same, but in linf, where steps use only the signs of gradients, noise randomises the smallest ones."""

    def move(self, step: int) -> None:
        """The same step, along the gradient plus noise."""
        if self.ball.norm == "linf":
            largest = length(self.gradient, "linf")
            self.gradient = torch.addcmul(self.gradient, torch.randn_like(self.gradient), largest, value=NOISE)
        super().move(step)


class _Sparse(_Search):
    """APGD-L1: a step changes two thirds as many values as the best iterate does; no momentum."""

    ball: L1Ball
    largest_step = 1.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.changed = self._changed()

    def periods(self, steps: int) -> Iterator[int]:
        """Always 4 % of the steps."""
        return repeat(max(int(0.04 * steps), 1))

    def move(self, step: int) -> None:
        """x ← P(x + size·direction)."""
        values = (self.changed / 1.5).long()  # rounding up, as the authors do, never goes from two values to one
        self.x_adv = self.ball.project(self.ball.ascend(self.x_adv, self.gradient, self.size, values))

    def adapt(self, period: int) -> None:
        """Where the best iterate became sparser, restart from it with the largest step; elsewhere shrink the step."""
        changed, largest = self._changed(), self.largest_step * self.ball.epsilon
        sparser = changed < 0.95 * self.changed
        self.changed = changed
        self._restart(sparser)
        self.size = torch.where(column(sparser, self.x_adv), largest, (self.size / 1.5).clamp_(min=largest / 10))

    def _changed(self) -> Tensor:
        return (self.x_best != self.ball.x).flatten(1).sum(1)
