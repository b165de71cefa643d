"""Embeddings of many images."""

import torch
from torch import Tensor, nn

from trl.errors import TrlError
from trl.evaluation.inference import as_input, device_of, full_precision
from trl.modes import evaluating
from trl.progress import batches


def embed(model: nn.Module, x: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Penultimate features float32 [n,d] and logits float32 [n,k] of images, on the CPU; eval mode, fp32, no gradient.

    `model` has `features(x)` and a `head`, as every model of `build_model`; `x` is uint8 or float in [0, 1], and goes
    to the model's device a batch at a time. TrlError for other models, and for no or unfit images.
    """
    features_of, head = getattr(model, "features", None), getattr(model, "head", None)
    if not callable(features_of) or not callable(head):
        raise TrlError(f"{type(model).__name__} has no features(x) and head: take a model made by build_model")
    if len(x) == 0:
        raise TrlError("there are no images to embed: give at least one")
    device = device_of(model)
    parts = []
    with evaluating(model), torch.no_grad(), full_precision(device):
        for batch in batches(len(x), batch_size):
            features = features_of(as_input(x[batch], device))
            parts.append((features.float().cpu(), head(features).float().cpu()))
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits
