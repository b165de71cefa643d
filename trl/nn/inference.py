"""Run a model for evaluation: check that it works, in full precision and without side effects."""

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
    """The device of the model's parameters or buffers; the CPU if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def try_out(model: nn.Module, x: Tensor) -> Tensor:
    """Try the model on batches of two images and of one, in eval mode; its logits [1,k] for the first image.

    TrlError if there is no image, or if the model raises (its exception is the cause), returns no logits, or modifies
    its input.
    """
    if len(x) == 0:
        raise TrlError("there are no images: give at least one")
    device, logits = device_of(model), torch.empty(0)
    for n in (2, 1)[len(x) < 2 :]:
        images = as_input(x[:n], device)
        try:
            with evaluating(model), torch.no_grad(), full_precision(device), kept_generators(device):
                logits = answer(model, images)
            if not torch.equal(images, as_input(x[:n], device)):  # via x.data or NumPy, which autograd does not notice
                raise TrlError(WRITES)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model raises
            shape = f"{'one image' if n == 1 else 'images'} {list(images.shape)}"
            raise TrlError(f"the model fails on {shape}: {in_one_line(error)}{_precision_hint(model)}") from error
    return logits


def _precision_hint(model: nn.Module) -> str:
    """A hint if the weights have a floating-point type but none is float32, else ""."""
    kinds = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    if not kinds or torch.float32 in kinds:
        return ""
    names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return f"; images are float32, but its weights are {names}: use model.float(), or convert in its forward"


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """Restore the random generators of the CPU and of `device` on exit."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else ())


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, use true fp32 whatever the caller set: no autocast, no TF32 or bf16 in matmul and convolutions."""
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
