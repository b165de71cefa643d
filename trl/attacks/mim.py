"""MIM, the momentum iterative method (Dong et al., CVPR 2018, arXiv 1710.06081)."""

import torch
from torch import Tensor, nn

from trl.attacks.base import ascent, check_positive
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.losses import cross_entropy
from trl.common.images import check_input
from trl.common.numbers import Count, NonNegative, Positive
from trl.nn.modes import frozen
from trl.nn.precision import searches_in_half
from trl.threat import Threat, dims_of


@searches_in_half
def mim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    steps: Count = 20,
    step_size: Positive | None = None,
    decay: NonNegative = 1.0,
) -> Tensor:
    """Steps along g ← decay·g + ∇/mean|∇| from `x` that ascend cross-entropy; no random start.

    The gradient is normalised per sample, by the mean instead of the sum (equation 6), which only rescales g.
    `step_size` None means 2.5·epsilon/steps. See the package for the rest.
    """
    check_criterion(criterion)
    check_positive(steps=steps, step_size=step_size)
    step = 2.5 * threat.epsilon / steps if step_size is None else step_size
    ascended, viewed = criterion.loss(cross_entropy), criterion.view(model)
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        ball, x_adv, momentum = threat.around(x), x, torch.zeros_like(x)
        for _ in range(steps):
            gradient = ascent(viewed, x_adv, y, ascended, classes, ball).gradient
            mean = gradient.abs().mean(dims_of(x), keepdim=True)
            momentum.mul_(decay).add_(gradient / mean.clamp_(min=torch.finfo(x.dtype).tiny))
            x_adv = ball.project(ball.ascend(x_adv, momentum, step))
        return x_adv
