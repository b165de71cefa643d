"""TRADES (Zhang et al., ICML 2019, arXiv 1901.08573): clean accuracy traded for a boundary far from the images."""

from torch import Tensor, nn

from trl.attacks.losses import divergence_from
from trl.common.numbers import NonNegative
from trl.objectives.base import Batch, Objective, Setting, Terms, at_least_fp32, classification, forward_groups

ASCENDS = {"loss": "kl", "random_start": False}  # options of the training attack: TRADES' inner maximisation


class Trades(Objective):
    """CE(f(x), y) + `beta` · KL(f(x) ‖ f(x')) (equation 5), means over the batch; the gradient flows through both.

    x' is the training attack's image, with the divergence as its loss, from a start beside x: the attack must be `pgd`.
    """

    attack_options = ASCENDS

    def __init__(self, setting: Setting, *, beta: NonNegative = 6.0) -> None:
        super().__init__(setting)
        self.beta = beta

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce and accuracy (on clean images), divergence (unweighted)."""
        x_adv = batch.attack(model, batch.x, batch.y)
        adversarial, clean = forward_groups(model, model, [x_adv, batch.x])
        return traded(clean, adversarial, batch.y, self.setting.label_smoothing, self.beta)


def traded(clean: Tensor, adversarial: Tensor, y: Tensor, label_smoothing: float, beta: float) -> Terms:
    """The terms of TRADES for the logits [n,k] of clean and adversarial images with labels [n]."""
    terms = classification(clean, y, label_smoothing)
    divergence = divergence_from(at_least_fp32(clean))(at_least_fp32(adversarial), y).mean()
    return {**terms, "loss": terms["loss"] + beta * divergence, "divergence": divergence}
