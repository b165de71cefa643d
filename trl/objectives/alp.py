"""ALP, adversarial logit pairing (Kannan et al. 2018, arXiv 1803.06373), as TLA's paper compares it."""

from torch import nn

from trl.common.numbers import NonNegative
from trl.objectives.base import Batch, Objective, Setting, Terms, at_least_fp32, classification, forward_groups


class LogitPairing(Objective):
    """AT + `weight` · ‖f(x) - f(x')‖², the squared distance of clean and adversarial logits (mean over the batch)."""

    def __init__(self, setting: Setting, *, weight: NonNegative = 0.5) -> None:
        super().__init__(setting)
        self.weight = weight

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on adversarial images), pairing (unweighted)."""
        x_adv = batch.attack(model, batch.x, batch.y)
        adversarial, clean = forward_groups(model, model, [x_adv, batch.x])
        terms = classification(adversarial, batch.y, self.setting.label_smoothing)
        pairing = (at_least_fp32(clean) - at_least_fp32(adversarial)).square().sum(1).mean()
        return {**terms, "loss": terms["loss"] + self.weight * pairing, "pairing": pairing}
