"""A model's inputs and outputs in an evaluation: images of any storage in, full precision throughout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trl.errors import TrlError

TOLERANCE = 1e-5  # how far rounding may carry a pixel out of [0, 1] or an image out of the threat ball


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or buffers) are; the CPU if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def as_input(x: Tensor, device: torch.device) -> Tensor:
    """Images, uint8 or float in [0, 1], as float32 in [0, 1] on `device`; TrlError for any other type or range."""
    if x.dtype == torch.uint8:
        return x.to(device).float() / 255
    if not x.is_floating_point():
        raise TrlError(f"images are {x.dtype}: give uint8, or floats in [0, 1]")
    x = x.to(device, torch.float32)
    low, high = (float(bound) for bound in x.aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise TrlError(
            f"pixels lie in [{low:.4g}, {high:.4g}]: give images in [0, 1] and let the model normalise them inside"
        )
    return x


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
