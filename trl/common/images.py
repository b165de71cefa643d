"""Check the images and labels that a caller gives; messages say how to fix them."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trl.common.errors import TrlError

TOLERANCE = 1e-5  # how far rounding may move a value out of [0, 1], or an image out of its ball
LEVELS = 65535  # images are compared at this many levels, so that a uint8 image is found however it was divided by 255


def check_input(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """A detached copy of `x`, `y` as int64, and the least number of classes that the labels imply.

    Synchronises with the device once. TrlError unless x is float32 or float64 [n,…] with values in [0, 1] and y
    is integer [n] ≥ 0 on the same device.
    """
    check_images_and_labels(x, y)
    if x.dtype not in (torch.float32, torch.float64):
        raise TrlError(
            f"images must be float32 or float64 in [0, 1] (given {_dtype(x)}); divide uint8 images by 255, "
            "and use torch.autocast for half precision"
        )
    if x.ndim < 2:
        raise TrlError(f"images must be [n,…] (given {list(x.shape)}): add the batch dimension with x[None]")
    if y.device != x.device:
        raise TrlError(f"images are on {x.device}, labels on {y.device}; use y.to(x.device)")
    # copies: autograd rejects tensors made under torch.inference_mode, and a model may modify its input
    x, y = x.detach().clone(), y.long().clone() if y.is_inference() else y.long()
    if len(x) == 0:
        return x, y, 0
    extremes = torch.stack([t.to(torch.float64) for t in (*x.aminmax(), *y.aminmax())])
    low, high, first, last = extremes.tolist()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also catches NaN
        raise TrlError(f"images must be in [0, 1] (given {low:.7g} to {high:.7g}); {range_hint(low, high)}")
    if first < 0:
        raise TrlError(f"labels must be at least 0 (given {first:.0f}); number the classes from 0")
    return x, y, int(last) + 1


def check_images_and_labels(x: object, y: object) -> None:
    """TrlError unless both are tensors and y holds one class number per image."""
    for what, given in (("images", x), ("labels", y)):
        if not isinstance(given, Tensor):
            raise TrlError(f"{what} are a {type(given).__name__}: give a tensor, such as torch.as_tensor({what})")
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    n = len(x) if x.ndim else 0
    if y.ndim == 2 and len(y) == n:
        column = y.shape[1] == 1
        kind, fix = ("one column", "y.squeeze(1)") if column else ("one-hot or class scores", "y.argmax(1)")
        raise TrlError(f"labels {list(y.shape)} are {kind}: give class numbers [n], such as {fix}")
    if y.ndim != 1 or len(y) != n:
        raise TrlError(f"images {list(x.shape)} with labels {list(y.shape)}: give images [n,…] and one label each [n]")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TrlError(f"labels must be integer class numbers (given {_dtype(y)}); use y.long()")


def range_hint(low: float, high: float) -> str:
    """How to fix images whose values range from `low` to `high` instead of from 0 to 1."""
    if math.isnan(low):
        return "give images without NaN"
    if low >= 0 and 2 < high <= 255:
        return "give images in [0, 1], such as x / 255, and normalise inside the model"
    return "give images in [0, 1], before normalisation, and normalise inside the model"


def as_input(x: Tensor, device: torch.device) -> Tensor:
    """A detached copy of images, uint8 or float in [0, 1], as float32 in [0, 1] on `device`.

    TrlError for any other type or range. Rounding errors outside [0, 1] are clamped.
    """
    if x.dtype == torch.uint8:
        return x.to(device).float() / 255
    if not x.is_floating_point():
        raise TrlError(f"images are {x.dtype}: give uint8, or floats in [0, 1]")
    x = x.detach().to(device, torch.float32, copy=True)
    low, high = (float(bound) for bound in x.aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise TrlError(f"pixels lie in [{low:.7g}, {high:.7g}]: {range_hint(low, high)}")
    return x.clamp_(0, 1) if low < 0 or high > 1 else x


def image_keys(images: Tensor) -> Iterator[bytes]:
    """A key for each image; uint8 and [0, 1] floats of any sufficient precision give the same key."""
    for image in images.detach().cpu():
        whole = image.int() * (LEVELS // 255) if image.dtype == torch.uint8 else image.float().clamp(0, 1) * LEVELS
        yield hashlib.blake2b(whole.round().int().numpy().tobytes(), digest_size=16).digest()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
