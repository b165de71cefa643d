"""Training for randomized smoothing: Gaussian noise (Cohen et al. 2019, arXiv 1902.02918), or stability training."""

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from trl.common.numbers import Positive
from trl.objectives.base import Batch, Objective, Setting, Terms, at_least_fp32, classification, forward_groups


class Smoothing(Objective):
    """Cross-entropy on images with Gaussian noise of standard deviation `sigma`, not clipped, as `certify` draws it.

    With `stability`, as Carmon et al. (2019, arXiv 1905.13736) train for certificates: cross-entropy on clean images +
    `stability` · KL(p(x) ‖ p(x + noise)), the mean over the batch; they use 6. The best epoch is chosen by clean
    accuracy, since certificates take too long for a look at each epoch.
    """

    selects = "val_clean"

    def __init__(self, setting: Setting, *, sigma: Positive = 0.25, stability: Positive | None = None) -> None:
        super().__init__(setting)
        self.sigma, self.stability = sigma, stability

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (both on noisy images, or on clean ones with `stability`), stability (KL)."""
        noisy = batch.x + self.sigma * torch.randn_like(batch.x)
        if self.stability is None:
            return classification(model(noisy), batch.y, self.setting.label_smoothing)
        clean_logits, noisy_logits = map(at_least_fp32, forward_groups(model, model, [batch.x, noisy]))
        terms = classification(clean_logits, batch.y, self.setting.label_smoothing)
        clean, other = log_softmax(clean_logits, 1), log_softmax(noisy_logits, 1)
        stability = kl_div(other, clean, reduction="batchmean", log_target=True)
        return {**terms, "loss": terms["loss"] + self.stability * stability, "stability": stability}
