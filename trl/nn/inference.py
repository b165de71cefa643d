"""A model's inputs and outputs in an evaluation: images of any storage in, full precision throughout."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError, in_one_line
from trl.common.images import as_input
from trl.nn.logits import WRITES, answer
from trl.nn.modes import evaluating


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters (or buffers) are; the CPU if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def try_out(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits [1,k] of the first of images x, in eval mode, before any work is spent on it.

    TrlError, with what the model raised as its cause, unless it answers a batch of one image and a batch of two, and
    leaves them as they are; or if there is no image.
    """
    if len(x) == 0:
        raise TrlError("there are no images: give at least one")
    device, logits = device_of(model), torch.empty(0)
    for n in (2, 1)[len(x) < 2 :]:
        images = as_input(x[:n], device)
        try:
            with evaluating(model), torch.no_grad(), full_precision(device), kept_generators(device):
                logits = answer(model, images)
            if not torch.equal(images, as_input(x[:n], device)):  # through x.data or NumPy, which autograd cannot see
                raise TrlError(WRITES)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model raises
            shape = f"{'one image' if n == 1 else 'images'} {list(images.shape)}"
            raise TrlError(f"the model cannot answer {shape}: {in_one_line(error)}{_precision_hint(model)}") from error
    return logits


def _precision_hint(model: nn.Module) -> str:
    """What to do where no weight is float32, as the images are; nothing otherwise."""
    kinds = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    if not kinds or torch.float32 in kinds:
        return ""
    names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return f"; images come as float32, but its weights are {names}: use model.float(), or convert in its forward"


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
