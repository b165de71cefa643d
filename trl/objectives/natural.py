"""UM, the undefended model: training on clean images."""

from torch import nn

from trl.objectives.base import Batch, Objective, Terms, classification


class Natural(Objective):
    """Cross-entropy on clean images. Its best epoch is chosen by clean accuracy, since none of its epochs is robust."""

    selects = "val_clean"

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on clean images)."""
        return classification(model(batch.x), batch.y, self.setting.label_smoothing)
