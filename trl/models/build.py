"""Build a model from a name and options, as in params.yaml."""

from typing import Any

import torch

from trl.common.errors import TrlError
from trl.models.base import Classifier
from trl.models.registry import MODELS


def build_model(name: str, classes: int, shape: tuple[int, int, int] = (3, 32, 32), **options: Any) -> Classifier:
    """A freshly initialised model (from torch's global generator) for images of `shape` (channels, height, width).

    TrlError: unknown name or option, fewer than two classes, or images smaller than 4×4 pixels.
    """
    if classes < 2 or len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 4:
        raise TrlError(
            f"model {name}: needs at least 2 classes and images (channels, height, width) of at least 4×4 pixels, "
            f"not {classes} classes and {tuple(shape)}"
        )
    # for an entry such as wrn_*, the builder parses depth and width from the name
    variant = () if name in MODELS.names() and "*" not in name else (name,)
    model: Classifier = MODELS.build(name, classes, tuple(shape), *variant, **options)
    checked = MODELS.options(name).model_validate(options).model_dump()
    # float32 whatever the default dtype; channels last makes convolutions faster on CPUs and GPUs
    model.float().to(memory_format=torch.channels_last)
    model.config = {"name": name, "classes": classes, "shape": tuple(shape), "options": checked}
    return model
