"""MART, misclassification-aware adversarial training (Wang et al., ICLR 2020)."""

import torch
from torch import nn

from trl.attacks.losses import cross_entropy, divergence_from
from trl.common.numbers import NonNegative
from trl.objectives.base import Batch, Objective, Setting, Terms, at_least_fp32, classification, forward_groups


class Mart(Objective):
    """BCE(f(x'), y) + `weight` · KL(f(x) ‖ f(x')) · (1 - p_y(x)) (equation 11), means over the batch.

    BCE is cross-entropy plus -log(1 - max over k ≠ y of p_k(x')): a margin. The factor counts an image the more, the
    less sure the model is of its class without attack; the gradient flows through it, too, as in the released code.
    """

    def __init__(self, setting: Setting, *, weight: NonNegative = 5.0) -> None:
        super().__init__(setting)
        self.weight = weight

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on adversarial images), margin, divergence (weighted per image)."""
        x_adv = batch.attack(model, batch.x, batch.y)
        adversarial, clean = map(at_least_fp32, forward_groups(model, model, [x_adv, batch.x]))
        terms = classification(adversarial, batch.y, self.setting.label_smoothing)
        rival = adversarial.scatter(1, batch.y[:, None], -torch.inf).argmax(1)
        # log(1 - p) as the sum over all other classes, which stays exact for p near 1
        rest = adversarial.log_softmax(1).scatter(1, rival[:, None], -torch.inf)
        margin = -rest.logsumexp(1).mean()
        unsure = -torch.expm1(-cross_entropy(clean, batch.y))
        divergence = (divergence_from(clean)(adversarial, batch.y) * unsure).mean()
        loss = terms["loss"] + margin + self.weight * divergence
        return {**terms, "loss": loss, "margin": margin, "divergence": divergence}
