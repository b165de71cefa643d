"""UM, the undefended model: training on clean images."""

from torch import Tensor, nn

from trl.objectives.base import Batch, Setting, Terms, classification


class Natural:
    """Cross-entropy on clean images. Its best epoch is chosen by clean accuracy, since none of its epochs is robust."""

    selects = "val_clean"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.memory: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on clean images)."""
        return classification(model(batch.x), batch.y, self.setting.label_smoothing)
