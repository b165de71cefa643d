"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599): straight to the nearest linearised boundary."""

import torch
from torch import Tensor, nn

from trl.attacks.base import check_positive
from trl.attacks.boundary import nearest_boundary, rivals, safe_margin
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.hyperplane import step_to_hyperplane
from trl.attacks.losses import cw_margin
from trl.common.images import check_input
from trl.common.numbers import Count, NonNegative
from trl.nn.logits import logits_of
from trl.nn.modes import frozen
from trl.threat import Threat

CHECK = 5  # every so many steps, samples that are done leave the batch


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 50,
    overshoot: NonNegative = 0.02,
    classes: Count = 10,
) -> Tensor:
    """Smallest steps beyond the nearest linearised boundary, by a share `overshoot`, until the criterion is met.

    Boundaries with the `classes` other classes that are most likely at x are looked at (`Targeted`: the boundary of y):
    a step costs one forward and as many backwards. Unlike in the paper, steps keep to [0, 1] from the start, in any of
    the norms. The search minimises the distance whatever epsilon is; a point that ends outside the threat's ball is
    projected onto it. See the package for the rest. TrlError for a criterion that is not about the highest logit.
    """
    check_criterion(criterion)
    check_positive(steps=steps, classes=classes)
    viewed = criterion.view(model)
    with frozen(model):
        x, y, known = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        outputs, margin = logits_of(viewed, x, known), criterion.loss(cw_margin)
        others, safe = rivals(outputs, y, criterion, classes), safe_margin(outputs, y)
        met = criterion.met(outputs, y)  # as it is, x need not be beyond the boundary by anything
        ends, point, rows = x.clone(), x, torch.arange(len(x), device=x.device)
        for step in range(steps):
            plane = nearest_boundary(viewed, point, y[rows], others[rows], criterion, threat.name, known)
            normal, value = plane.normal, plane.value
            met = met | (margin(plane.outputs, y[rows]) > safe[rows])
            if step % CHECK == 0:
                ends[rows] = point
                left = (~met).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                rows, point, normal, value, met = (t[left] for t in (rows, point, normal, value, met))
            # aimed beyond the boundary, since the box cuts a longer step; by a bit at least, since values may vanish
            aimed = (1 + overshoot) * (value - 2 * safe[rows])
            move = step_to_hyperplane(point, normal, aimed.to(x.dtype).masked_fill(met, 0.0), threat.name)
            point = torch.add(point, move).clamp_(0, 1)
        ends[rows] = point
        return threat.project(ends, x)
