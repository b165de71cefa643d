"""A model's inputs and outputs in an evaluation: images of any storage in, full precision throughout."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trl.errors import TrlError
from trl.threat import TOLERANCE


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or buffers) are; the CPU if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def as_input(x: Tensor, device: torch.device) -> Tensor:
    """Images, uint8 or float in [0, 1], as float32 in [0, 1] on `device`; TrlError for any other type or range.

    What rounding has carried out of [0, 1] is clamped.
    """
    if x.dtype == torch.uint8:
        return x.to(device).float() / 255
    if not x.is_floating_point():
        raise TrlError(f"images are {x.dtype}: give uint8, or floats in [0, 1]")
    x = x.to(device, torch.float32)
    low, high = (float(bound) for bound in x.aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise TrlError(
            f"pixels lie in [{low:.7g}, {high:.7g}]: give images in [0, 1], as natural images are, "
            "and let the model normalise them inside"
        )
    return x.clamp(0, 1) if low < 0 or high > 1 else x


def checked_logits(model: nn.Module, x: Tensor, what: str = "natural images") -> Tensor:
    """The model's answer to images x, called `what` in messages; TrlError unless it is logits [n,k] without NaN."""
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrlError(f"the model answers {given} to {len(x)} images: it must return logits [n, classes]")
    if logits.isnan().any():
        raise TrlError(f"the model's logits are NaN on {what}: its weights or its normalisation are broken")
    return logits


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """Inside, random numbers may be drawn and seeded; the CPU's and the `device`'s generators are kept as they were."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else ())


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """True fp32 inside, whatever the caller chose: no autocast, no TF32 or bf16 in products and convolutions."""
    backends: Any = torch.backends
    products = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    former = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for product, precision in zip(products, former, strict=True):
            product.fp32_precision = precision
