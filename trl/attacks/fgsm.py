"""FGSM, the fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572)."""

from torch import Tensor, nn

from trl.attacks.base import ascent
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.hyperplane import steepest_step
from trl.attacks.losses import cross_entropy
from trl.common.images import check_input
from trl.nn.modes import frozen
from trl.nn.precision import searches_in_half
from trl.threat import Threat


@searches_in_half
def fgsm(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, criterion: Criterion = MISCLASSIFIED) -> Tensor:
    """One step from `x` that maximises the linearised cross-entropy within the threat's ball and [0, 1].

    In l2 and l1, budget that the box clips from one value goes to the others. See the package for the rest.
    """
    check_criterion(criterion)
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        ball = threat.around(x)
        gradient = ascent(criterion.view(model), x, y, criterion.loss(cross_entropy), classes, ball).gradient
        return ball.project(x + steepest_step(x, gradient, ball.epsilon, ball.norm))
