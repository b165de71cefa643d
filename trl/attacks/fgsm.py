"""FGSM, the fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572)."""

from torch import Tensor, nn

from trl.attacks.criterion import MISCLASSIFIED, Criterion
from trl.attacks.inner import ascent, check_input, frozen
from trl.attacks.losses import cross_entropy
from trl.precision import searches_in_half
from trl.threat import Threat


@searches_in_half
def fgsm(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, criterion: Criterion = MISCLASSIFIED) -> Tensor:
    """One step of size epsilon from `x` along the steepest ascent of cross-entropy; see the package for the rest."""
    with frozen(model):
        x, y, classes = check_input(x, y)
        if len(x) == 0:
            return x.clone()
        gradient = ascent(criterion.view(model), x, y, criterion.loss(cross_entropy), classes).gradient
        return threat.project(threat.ascend(x, gradient, threat.epsilon), x)
