"""FAB, the fast adaptive boundary attack (Croce & Hein 2020, arXiv 1907.02044), and its targeted form in AutoAttack.

It looks for the smallest adversarial perturbation; epsilon only decides when to stop the search.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trl.attacks.base import check_positive, judge
from trl.attacks.boundary import nearest_boundary, rivals, safe_margin
from trl.attacks.criterion import MISCLASSIFIED, Criterion, Misclassified, Targeted, check_criterion
from trl.attacks.hyperplane import step_to_hyperplane
from trl.attacks.losses import cw_margin
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.common.numbers import Count, Fraction, Positive
from trl.nn.logits import logits_of
from trl.nn.modes import frozen
from trl.threat import Ball, Threat, column, dims_of, length

LEAVE = 2  # steps between checks that drop finished samples from the batch
CHECK = 10  # steps, a multiple of LEAVE, between checks that also drop hopeless samples
PATIENCE = 5  # after 1/PATIENCE of the steps, a sample without success is no longer biased towards x
FINAL_STEPS = 3  # steps of the final search (section 3.3)
FURTHER = 1.02  # a success within rounding of the boundary starts that search this many times as far from x


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 100,
    restarts: Count = 1,
    alpha_max: Fraction = 0.1,
    eta: Positive = 1.05,
    beta: Fraction = 0.9,
    minimize: bool = False,
) -> Tensor:
    """Step to the nearest linearised class boundary (`Targeted`: the one of y), with a bias towards x.

    A step goes `eta` times as far as the estimated boundary, and mixes in the projection of x with a weight of at most
    `alpha_max` (equation 9); a success is pulled back to `beta` of its distance (equation 10). The first run starts
    at `x`, the remaining `restarts` at random points near it. With k classes, a step costs two forward passes and k - 1
    backward passes.

    Returns the smallest success found, projected onto the threat's ball if it lies outside. A success is past the
    boundary by more than rounding, so that it also holds in a batch of another size. With `minimize` False, a sample is
    done at its first success within the ball; in linf a run also gives up once the distance falls too slowly to get
    there. True continues to the smallest norm: with a large epsilon, this is a minimal-norm attack.
    See the package for the rest. TrlError for any criterion but `Misclassified` and `Targeted`.
    """
    search = _Search(threat, criterion, steps, restarts, alpha_max, eta, beta, minimize)
    return search.attack(model, x, y)


def fab_t(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 100,
    restarts: Count = 1,
    targets: Count = 9,
    alpha_max: Fraction = 0.1,
    eta: Positive = 1.05,
    beta: Fraction = 0.9,
    minimize: bool = False,
) -> Tensor:
    """FAB-T of AutoAttack (Croce & Hein 2020, arXiv 2003.01690): `fab` towards one other class at a time.

    Targets are the `targets` most likely other classes at x, or fewer if there are fewer. A step costs two forward
    passes and one backward pass, however many classes there are. Any class but y counts as a success.
    TrlError unless the criterion is `Misclassified`.
    """
    check_criterion(criterion)
    if not isinstance(criterion, Misclassified):
        raise TrlError("fab_t picks its own target classes; use fab with Targeted() to reach a given class")
    check_positive(targets=targets)
    search = _Search(threat, criterion, steps, restarts, alpha_max, eta, beta, minimize, targets)
    return search.attack(model, x, y)


@dataclass(frozen=True)
class _Search:
    threat: Threat
    criterion: Criterion
    steps: int
    restarts: int
    alpha_max: float
    eta: float
    beta: float
    minimize: bool
    targets: int | None = None  # try one class at a time; None: the nearest of all

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_positive(steps=self.steps, restarts=self.restarts, eta=self.eta)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x, y, classes = check_input(x, y)
        model, loss = self.criterion.view(model), self.criterion.loss(cw_margin)
        # half precision is too coarse for points on the boundary: under autocast FAB found a third fewer
        with frozen(model), torch.autocast(x.device.type, enabled=False):
            if len(x) == 0:
                return x.clone()
            ball = self.threat.around(x)
            outputs = logits_of(model, x, classes)
            safe = safe_margin(outputs, y)
            # towards a given class, other classes tie at the boundary and steps become too short: aim past it
            aim = 2 * safe if isinstance(self.criterion, Targeted) else torch.zeros_like(safe)
            others = rivals(outputs, y, self.criterion, self.targets)
            nearest = x.clamp(0, 1)
            done = self.criterion.met(outputs, y)  # has a success within the ball, in full precision
            distance = torch.where(done, 0.0, torch.inf).to(x.dtype)
            for restart in range(self.restarts):
                for led in others.tensor_split(others.shape[1], dim=1) if self.targets else (others,):
                    left = (distance > 0 if self.minimize else ~done).nonzero().squeeze(1)
                    if len(left) == 0:
                        break
                    here = ball[left]
                    start = _random_start(here, distance[left]) if restart else here.x
                    found, size = self._run(model, here, y[left], led[left], aim[left], start, classes)
                    found, size = self._final_search(model, here, y[left], safe[left], found, size, classes)
                    inside = here.project(found)
                    _, margin = judge(model, inside, y[left], self.criterion, loss, classes)
                    met = margin > safe[left]
                    better = (met & ~done[left]) | ((met == done[left]) & (size <= distance[left]))
                    found = torch.where(column(met, x), inside, found)
                    size = torch.where(met, here.distance(inside).to(size.dtype), size)
                    chosen = left[better]
                    nearest[chosen], distance[chosen], done[chosen] = found[better], size[better], met[better]
            return torch.where(column(done, x), nearest, ball.project(nearest))

    def _run(
        self, model: nn.Module, ball: Ball, y: Tensor, led: Tensor, aim: Tensor, start: Tensor, classes: int
    ) -> tuple[Tensor, Tensor]:
        """Algorithm 1: the smallest success and its distance [n]; without success, the last point and inf."""
        x, norm, dims = ball.x, ball.norm, dims_of(ball.x)
        rows = torch.arange(len(x), device=x.device)
        point, at, found, best = start, start, start, column(x.new_full((len(x),), torch.inf), x)
        earlier = last = best  # at earlier checks
        all_found, all_best = x.clone(), best.clone()
        for step in range(self.steps):
            if step % LEAVE == 0 and not self.minimize:
                going = best > self.threat.epsilon
                if step % CHECK == 0 and norm == "linf":  # in l2 and l1 a distance may stall for long, then fall
                    going &= self._hopeful(best, earlier, step)
                    earlier, last = last, best
                keep = going.flatten().nonzero().squeeze(1)
                if len(keep) < len(x):
                    if len(keep) == 0:
                        break
                    all_found[rows], all_best[rows] = found, best
                    y, led, rows, point, at, found = (t[keep] for t in (y, led, rows, point, at, found))
                    ball = ball[keep]
                    x = ball.x
                    best, earlier, last, aim = (t[keep] for t in (best, earlier, last, aim))
            normal, value, _ = nearest_boundary(model, at, y, led, self.criterion, ball, classes)
            value = value + ((point - at) * normal).sum(dims)
            value, climbed = (value - aim).to(x.dtype), ((point - x) * normal).sum(dims)
            from_point = step_to_hyperplane(point, normal, value, norm)
            from_x = step_to_hyperplane(x, normal, value - climbed, norm)
            near, far = length(from_point, norm).clamp_(min=1e-8), length(from_x, norm).clamp_(min=1e-8)
            alpha = (near / (near + far)).clamp_(max=self.alpha_max)
            if step >= self.steps // PATIENCE:  # the bias towards x can hold a sample on the wrong side
                alpha = alpha.masked_fill(best.isinf(), 0)
            point = torch.lerp(point, x, alpha).add_(from_point.lerp_(from_x, alpha), alpha=self.eta)
            point = ball.confine(point)
            outputs = logits_of(model, point, classes)
            enough = self.criterion.loss(cw_margin)(outputs, y) >= aim / 2
            met = column(self.criterion.met(outputs, y) & enough, x)
            size = length(point - x, norm)
            better = met & (size < best)
            best = torch.where(better, size, best)
            # lerp with weights 0 and 1 is exact, and faster than where
            found = torch.lerp(found, point, (better | best.isinf()).to(x.dtype))
            at, point = point, torch.lerp(x, point, 1 - (1 - self.beta) * met.to(x.dtype))
            if norm != "linf":  # only in linf does linearising at the success itself give smaller norms (by 3 %)
                at = point
        all_found[rows], all_best[rows] = found, best
        return all_found, all_best.flatten()

    def _hopeful(self, best: Tensor, earlier: Tensor, step: int) -> Tensor:
        """Whether a sample could still reach the ball at its pace over the last two checks; the pace only falls."""
        missing, pace = best - self.threat.epsilon, (earlier - best) / (2 * CHECK)
        return best.isinf() | earlier.isinf() | (missing <= pace * (self.steps - step))

    def _final_search(
        self, model: nn.Module, ball: Ball, y: Tensor, safe: Tensor, found: Tensor, size: Tensor, classes: int
    ) -> tuple[Tensor, Tensor]:
        """Move successes along the line to x until just past the boundary, by false position on the margin.

        Without `minimize`, only those that could end inside the ball: most lie barely past the boundary already.
        """
        loss = self.criterion.loss(cw_margin)
        far = torch.inf if self.minimize else self.threat.epsilon / max(self.beta, 0.5)
        rows = ((size > 0) & (size < far)).nonzero().squeeze(1)
        if len(rows) == 0:
            return found, size
        ball, y, safe, end = ball[rows], y[rows], safe[rows], found[rows]
        x = ball.x

        def between(share: Tensor) -> Tensor:
            return ball.confine(torch.lerp(x, end, column(share.to(x.dtype), x)))

        def beyond(images: Tensor) -> Tensor:
            return judge(model, images, y, self.criterion, loss, classes)[1] - safe

        low_value, high_value = beyond(x), beyond(end)
        low, high = torch.zeros_like(low_value), torch.ones_like(high_value).masked_fill(high_value <= 0, FURTHER)
        high_value = torch.where(high_value > 0, high_value, beyond(between(high)))
        for _ in range(FINAL_STEPS):
            share = (low_value / (low_value - high_value)).nan_to_num(nan=1.0).clamp(0, 1)
            middle = torch.lerp(low, high, 0.99 * share + 0.01)  # just past the boundary, rather than just before it
            value = beyond(between(middle))
            met = value > 0
            low, low_value = torch.where(met, low, middle), torch.where(met, low_value, value)
            high, high_value = torch.where(met, middle, high), torch.where(met, value, high_value)
        found[rows] = end = between(high)
        size[rows] = ball.distance(end)
        return found, size


def _random_start(ball: Ball, distance: Tensor) -> Tensor:
    """A random point, at most half as far away as the nearer of the smallest success and the ball's boundary."""
    ball = ball.at(min(ball.epsilon, 1.0))  # larger: only corners of the box
    share = 0.5 * (distance / max(ball.epsilon, torch.finfo(distance.dtype).tiny)).clamp(max=1)
    return torch.lerp(ball.x, ball.random_start(), column(share, ball.x))
