"""What detectors and analyses read from a classifier, for many images."""

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.common.progress import batches
from trl.detectors.base import Reads
from trl.detectors.observe import observe
from trl.nn.inference import as_input, device_of, full_precision
from trl.nn.modes import evaluating


def embed(model: nn.Module, x: Tensor, batch_size: int = 500, reads: Reads = "features") -> tuple[Tensor, Tensor]:
    """Embeddings float32 [n,d] and logits float32 [n,k] of images, on the CPU; eval mode, fp32, no gradient.

    Of any module; instead of the embedding, whatever a detector `reads` (see `observe`, and its errors).
    `x` is uint8 or float in [0, 1], and goes to the model's device a batch at a time. TrlError for no or unfit images.
    """
    if len(x) == 0:
        raise TrlError("there are no images to embed: give at least one")
    device = device_of(model)
    parts = []
    with evaluating(model), torch.no_grad(), full_precision(device):
        for batch in batches(len(x), batch_size):
            logits, seen = observe(model, as_input(x[batch], device), reads)
            parts.append((seen.float().cpu(), logits.float().cpu()))
    seen, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return seen, logits
