"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599): steps to the nearest linearised boundary."""

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

CHECK = 5  # steps between checks that drop finished samples from the batch


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
    """Step past the nearest linearised boundary, by a fraction `overshoot` of the distance, until the criterion is met.

    Considers the boundaries to the `classes` most likely other classes at x (`Targeted`: only the boundary of y); a
    step costs one forward pass and one backward pass per class. Unlike the paper, every step stays in [0, 1], and any
    norm works. The search ignores epsilon; a result outside the threat's ball is projected onto it. See the package
    for the rest. TrlError for any criterion but `Misclassified` and `Targeted`.
    """
    check_criterion(criterion)
    check_positive(steps=steps, classes=classes)
    viewed = criterion.view(model)
    with frozen(model):
        x, y, known = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        ball = threat.around(x)
        outputs, margin = logits_of(viewed, x, known), criterion.loss(cw_margin)
        others, safe = rivals(outputs, y, criterion, classes), safe_margin(outputs, y)
        met = criterion.met(outputs, y)  # x itself needs no safety margin
        ends, point, here, rows = x.clone(), x, ball, torch.arange(len(x), device=x.device)
        for step in range(steps):
            plane = nearest_boundary(viewed, point, y[rows], others[rows], criterion, here, known)
            normal, value = plane.normal, plane.value
            met = met | (margin(plane.outputs, y[rows]) > safe[rows])
            if step % CHECK == 0:
                ends[rows] = point
                left = (~met).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                rows, point, normal, value, met = (t[left] for t in (rows, point, normal, value, met))
                here = here[left]
            # overshoot the target, not the step: the box would clip a longer step; the margin counts where value is 0
            aimed = (1 + overshoot) * (value - 2 * safe[rows])
            move = step_to_hyperplane(point, normal, aimed.to(x.dtype).masked_fill(met, 0.0), ball.norm)
            point = here.confine(torch.add(point, move))
        ends[rows] = point
        return ball.project(ends)
