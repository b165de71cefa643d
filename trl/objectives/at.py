"""AT, adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083)."""

from torch import Tensor, nn

from trl.objectives.base import Batch, Setting, Terms, classification


class AdversarialTraining:
    """Cross-entropy on the training attack's images alone."""

    selects = "val_robust"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.memory: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on adversarial images)."""
        x_adv = batch.attack(model, batch.x, batch.y)
        return classification(model(x_adv), batch.y, self.setting.label_smoothing)
