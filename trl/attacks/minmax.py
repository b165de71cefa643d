"""Min-max attacks on several domains at once (Wang et al., NeurIPS 2021, arXiv 1906.03563; there called APGDA).

min over δ, max over w in the simplex, of Σ wᵢ·Fᵢ(δ) - γ/2·‖w - 1/K‖²: the weights w of the K domains, one vector per
example, go to those that are hardest to fool. Fᵢ = max(0, 50 - margin), with the margin of Carlini & Wagner.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from trl.attacks.base import check_positive
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.domains import FoolsAll
from trl.attacks.eot import EoT
from trl.attacks.hyperplane import steepest_step
from trl.attacks.losses import cw_margin
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.common.numbers import Count, NonNegative, Positive
from trl.nn.logits import logits_of
from trl.nn.modes import frozen
from trl.threat import Ball, Threat, column, length

Strategy = Literal["minmax", "average"]
CONFIDENCE = 50.0  # margins beyond it count no more
LARGEST = 1e6  # keeps infinite margins out of the projection


class Found(NamedTuple):
    """Adversarial images `x_adv` [n,…] and the `weights` of the domains, which sum to 1 over the last dimension."""

    x_adv: Tensor
    weights: Tensor


def minmax(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
    weight_step: Positive = 1 / 50,
    gamma: NonNegative = 4.0,
    strategy: Strategy = "minmax",
) -> Tensor:
    """The `x_adv` of `weighted_minmax`, as an attack for `evaluate` with the criterion `FoolsAll`."""
    options = {"steps": steps, "step_size": step_size, "weight_step": weight_step, "gamma": gamma}
    return weighted_minmax(model, x, y, threat, criterion, strategy=strategy, **options).x_adv  # type: ignore[arg-type]


def weighted_minmax(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
    weight_step: Positive = 1 / 50,
    gamma: NonNegative = 4.0,
    strategy: Strategy = "minmax",
) -> Found:
    """`steps` projected steps from x on the weighted loss of all domains; the weights are [n,domains].

    `model` is a `SideBySide`, or an `EoT` of one, whose losses are then means over its draws; `criterion` is
    `FoolsAll`. After every step on the images the weights take one of size `weight_step` on the losses at the new
    point. `gamma` draws them to 1/K: 0 is the worst case, and a large one the average. `strategy: average` leaves them
    there. `step_size` None means 2.5·epsilon/steps. Per sample, the iterate that comes closest to fooling the hardest
    domain is returned. TrlError for one domain only and for invalid options. See the package for the rest.
    """
    check_criterion(criterion)
    if not isinstance(criterion, FoolsAll):
        raise TrlError("min-max needs several domains: attack SideBySide(models) with criterion FoolsAll(len(models))")
    _check(steps, step_size, weight_step, gamma, strategy)
    step = 2.5 * threat.epsilon / steps if step_size is None else step_size
    inner, draws = (model.model, model.samples) if isinstance(model, EoT) else (model, 1)
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return Found(x.clone(), x.new_zeros(0, criterion.domains))
        ball = threat.around(x)
        project = projection(ball)

        def losses(x_adv: Tensor) -> Tensor:
            values = [criterion.losses(cw_margin, logits_of(inner, x_adv, classes), y) for _ in range(draws)]
            return torch.stack(values).mean(0)

        def move(x_adv: Tensor, gradient: Tensor) -> Tensor:
            return project(ball.ascend(x_adv, ball.cut(gradient), step))

        return _solve(losses, x, move, criterion.domains, steps, weight_step, gamma, strategy)


def universal(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    group: int,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
    weight_step: Positive = 1 / 50,
    gamma: NonNegative = 4.0,
    strategy: Strategy = "minmax",
) -> Found:
    """One perturbation for every `group` consecutive images, which are its domains; the weights are [n/group, group].

    The perturbation lies in the threat's ball; the images are clamped to [0, 1] after it is added. Options are those
    of `weighted_minmax`. TrlError if the images are no whole number of groups, too.
    """
    if threat.region is not None:
        raise TrlError("a universal perturbation is the same for several images, whose regions differ: use no region")
    if group < 2:
        raise TrlError(f"a universal perturbation needs groups of at least two images, not {group!r}")
    _check(steps, step_size, weight_step, gamma, strategy)
    step = 2.5 * threat.epsilon / steps if step_size is None else step_size
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) % group:
            raise TrlError(f"{len(x)} images are no whole number of groups of {group}: leave out {len(x) % group}")
        if len(x) == 0:
            return Found(x.clone(), x.new_zeros(0, group))

        def images(change: Tensor) -> Tensor:
            return (x + change.repeat_interleave(group, 0)).clamp(0, 1)

        def losses(change: Tensor) -> Tensor:
            return cw_margin(logits_of(model, images(change), classes), y).view(-1, group)

        def move(change: Tensor, gradient: Tensor) -> Tensor:
            middle = torch.full_like(change, 0.5)  # a step from there meets no end of [0, 1]
            return _into_ball(change + (threat.around(middle).ascend(middle, gradient, step) - middle), threat)

        found = _solve(losses, torch.zeros_like(x[::group]), move, group, steps, weight_step, gamma, strategy)
        return Found(threat.around(x).project(images(found.x_adv)), found.weights)


def _solve(
    losses: Callable[[Tensor], Tensor],
    start: Tensor,
    move: Callable[[Tensor, Tensor], Tensor],
    domains: int,
    steps: int,
    weight_step: float,
    gamma: float,
    strategy: Strategy,
) -> Found:
    """The best point and the last weights; `losses` maps points [n,…] to margins [n,domains]."""
    point = best = start
    weights = start.new_full((len(start), domains), 1 / domains)
    highest = start.new_full((len(start),), -torch.inf)
    for i in range(steps + 1):
        with torch.enable_grad():
            point = point.detach().requires_grad_(i < steps)
            values = losses(point).clamp(max=CONFIDENCE)
        seen = values.detach().nan_to_num(nan=0.0).clamp(-LARGEST)
        if strategy == "minmax" and i > 0:
            weights = next_weights(weights, -seen, weight_step, gamma)
        better = seen.amin(1) > highest
        best = torch.where(column(better, start), point.detach(), best)
        highest = torch.maximum(highest, seen.amin(1))
        if i < steps:
            with torch.enable_grad():
                total = (weights * values).sum()
            if not total.requires_grad:
                raise TrlError("the model's logits have no gradient at its input: use square with criterion FoolsAll")
            (gradient,) = torch.autograd.grad(total, point, materialize_grads=True)
            point = move(point.detach(), gradient.nan_to_num(nan=0.0))
    return Found(best, weights)


def next_weights(weights: Tensor, hardness: Tensor, weight_step: float, gamma: float) -> Tensor:
    """One step of ascent of the weights [n,K] on Σ wᵢ·hardnessᵢ - gamma/2·‖w - 1/K‖², projected to the simplex.

    The second term is taken at the new weights instead of at the old ones, which is the same for a small product of
    `weight_step` and gamma, and stable for a large one.
    """
    pull = gamma / weights.shape[1]
    return project_simplex((weights + weight_step * (hardness + pull)) / (1 + weight_step * gamma))


def project_simplex(values: Tensor) -> Tensor:
    """The nearest point, per row of [n,K], with parts of at least 0 that sum to 1."""
    # what is subtracted from all parts does not change the result: keep the numbers small
    ordered = (values - values.amax(1, keepdim=True)).sort(1, descending=True).values
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    shift = (ordered.cumsum(1) - 1) / count
    kept = (ordered > shift).sum(1, keepdim=True)
    return (values - values.amax(1, keepdim=True) - shift.gather(1, kept - 1)).clamp_(min=0)


def projection(ball: Ball) -> Callable[[Tensor], Tensor]:
    """A function that maps x_adv to the nearest point in the ball and in [0, 1], in l2, too."""
    if ball.norm != "l2":
        return ball.project
    x, epsilon = ball.x, ball.epsilon

    def project(x_adv: Tensor) -> Tensor:
        x_adv = ball.restore(x_adv)
        clamped = x_adv.clamp(0, 1)
        # of the points on the sphere: the one that goes furthest along the change, unless the box stops it
        nearest = x + steepest_step(x, x_adv - x, epsilon, "l2")
        return ball.project(torch.where(length(clamped - x, "l2") <= epsilon, clamped, nearest))

    return project


def _into_ball(change: Tensor, threat: Threat) -> Tensor:
    """The nearest change in the threat's ball."""
    if threat.epsilon == 0:
        return torch.zeros_like(change)
    if threat.name == "linf":
        return change.clamp(-threat.epsilon, threat.epsilon)
    size = length(change, threat.name)
    if threat.name == "l2":
        return change * (threat.epsilon / size.clamp_min(threat.epsilon))
    shrunk = project_simplex(change.abs().flatten(1) / threat.epsilon).view_as(change) * threat.epsilon
    return torch.where(size <= threat.epsilon, change, shrunk.copysign(change))


def _check(steps: int, step_size: float | None, weight_step: float, gamma: float, strategy: str) -> None:
    check_positive(steps=steps, step_size=step_size, weight_step=weight_step)
    if not gamma >= 0:
        raise TrlError(f"gamma must be at least 0, not {gamma!r}")
    if strategy not in ("minmax", "average"):
        raise TrlError(f"unknown strategy {strategy!r}; known: minmax, average")
