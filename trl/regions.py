"""Regions: which values of an image an attacker may change.

A region is a function of the clean images: from x, [n,…] in [0, 1], to a bool tensor that is True where a value may
change, of the shape of x, or with 1 in place of a dimension along which it does not differ. An attack calls it once.
Any such function will do; the ones here can be named in params.yaml and on the command line. Images are [n,…,h,w]: all
dimensions before h are channels, and [n,d] has d pixels in a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from trl.common.arrays import read_named
from trl.common.errors import TrlError
from trl.common.images import image_keys
from trl.common.numbers import Count, Real
from trl.registry import Registry

Region = Callable[[Tensor], Tensor]
Threshold = Annotated[Real, Field(ge=0, le=1)]

REGIONS = Registry(
    "region",
    {
        "background": "trl.regions:Background",
        "foreground": "trl.regions:Foreground",
        "border": "trl.regions:Border",
        "mask": "trl.regions:MaskFile",
    },
)


def build_region(name: str, **options: Any) -> Region:
    """The region called `name`; TrlError for an unknown name or invalid options."""
    region: Region = REGIONS.build(name, **options)
    return region


@dataclass(frozen=True, kw_only=True)
class Background:
    """Pixels whose intensity, the mean over channels, is below `threshold`: for bright objects on black, as in MNIST.

    Photographs have no such background: give masks of your own instead.
    """

    threshold: Threshold = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        """bool [n,1,h,w], or [n,d]."""
        return _intensity(x) < self.threshold


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """Pixels whose intensity, the mean over channels, is at least `threshold`: all but the `Background`."""

    threshold: Threshold = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        """bool [n,1,h,w], or [n,d]."""
        return _intensity(x) >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Border:
    """The outermost `width` pixels on every side."""

    width: Count = 1

    def __call__(self, x: Tensor) -> Tensor:
        """bool, 1 in every dimension but those of the pixels."""
        sides = x.ndim - 2 if x.ndim > 2 else 1  # the first dimension of the pixels
        inner = torch.ones([1] * sides + list(x.shape[sides:]), dtype=torch.bool, device=x.device)
        for dim in range(sides, x.ndim):
            place = torch.arange(x.shape[dim], device=x.device)
            kept = (place >= self.width) & (place < x.shape[dim] - self.width)
            inner &= kept.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
        return ~inner


class MaskFile:
    """A .npz or .safetensors file with `images` and, for each of them, one of `masks` (bool, or 0 and 1).

    `images` are uint8 or float in [0, 1], the very ones that are attacked; equal ones share one mask. TrlError: the
    file cannot be read, lacks a mask for an image, or is asked for an image that it does not hold.
    """

    def __init__(self, *, path: str) -> None:
        images, masks = read_named(Path(path), ("images", "masks"))
        if len(masks) != len(images):
            raise TrlError(f"{path}: holds {len(masks)} masks for {len(images)} images; give one mask for each image")
        if masks.dtype != torch.bool and not bool(((masks == 0) | (masks == 1)).all()):
            raise TrlError(f"{path}: masks must be bool, or 0 and 1; save `masks > 0`")
        self.path, self.masks = path, masks.bool()
        self.rows = {key: row for row, key in enumerate(image_keys(images))}

    def __call__(self, x: Tensor) -> Tensor:
        """The masks of these images."""
        try:
            rows = [self.rows[key] for key in image_keys(x)]
        except KeyError:
            raise TrlError(f"{self.path}: holds no mask for some of the images; add those images and masks") from None
        return self.masks[rows].to(x.device)


def mask_of(region: Region, x: Tensor) -> Tensor | None:
    """The region of the images, bool shaped like x; None if it is everything. TrlError if it is no such tensor."""
    with torch.no_grad():
        mask = region(x.clone())  # a copy: it may modify its input
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = str(mask.dtype).removeprefix("torch.") if isinstance(mask, Tensor) else type(mask).__name__
        raise TrlError(f"the region returned {given}: it must return a bool tensor, such as x < 0.1")
    if mask.ndim != x.ndim or any(have not in (1, want) for have, want in zip(mask.shape, x.shape, strict=True)):
        raise TrlError(
            f"the region returned {list(mask.shape)} for images {list(x.shape)}: return that shape, "
            "with 1 in place of a dimension along which it does not differ"
        )
    mask = torch.empty_like(x, dtype=torch.bool).copy_(mask)
    return None if bool(mask.all()) else mask


def _intensity(x: Tensor) -> Tensor:
    return x.mean(tuple(range(1, x.ndim - 2)), keepdim=True) if x.ndim > 3 else x
