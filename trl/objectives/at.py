"""AT, adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083)."""

from torch import nn

from trl.objectives.base import Batch, Objective, Terms, classification


class AdversarialTraining(Objective):
    """Cross-entropy on the training attack's images alone."""

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on adversarial images)."""
        x_adv = batch.attack(model, batch.x, batch.y)
        return classification(model(x_adv), batch.y, self.setting.label_smoothing)
