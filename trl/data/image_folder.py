"""Your own images: PNG, JPEG, … files, one folder per class."""

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trl.common.errors import TrlError, in_one_line
from trl.common.numbers import Count
from trl.common.progress import Progress, say
from trl.data.base import Dataset, ImageSet

TEST_FOLDERS = ("test", "val")  # the first that exists holds the test images
LAYOUT = "it needs train/CLASS/… and test/CLASS/… (or val/CLASS/…) with the image files of each class"


def image_folder(raw: Path | None, *, path: str, size: Count) -> Dataset:
    """The images in `path`/train/CLASS and `path`/test/CLASS (or val/CLASS), as torchvision's ImageFolder finds them.

    A relative `path` is relative to the working folder, which for stages is the project's root; `raw` is ignored.
    Classes are numbered in the order of their sorted names. Each image is rotated by its EXIF orientation, cropped to
    its centre square and resized to `size` × `size` pixels. Images are grey (one channel) if every pixel of every image
    is grey, else RGB. A val folder beside a test folder is ignored: validation images come from the training images.

    TrlError: a folder is missing, a class is empty or missing in the other part, or a file is damaged, animated, partly
    transparent, has more than 8 bits per channel, or is larger than Pillow opens without a warning.

    Stage prepare notices changed files because dvc.yaml lists the folder `data` as its dependency; it therefore accepts
    only folders inside `data` (see `tasks.prepare`). The splits' hash covers the pixels, as for every data set.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise TrlError(f"{folder}: no such folder; {LAYOUT}")
    held_out = next((name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir():
        raise TrlError(f"{folder}: has no folder train; {LAYOUT}")
    if held_out is None:
        move = "move some images of each class, such as a fifth, from train/CLASS to test/CLASS"
        raise TrlError(f"{folder}: has no folder test or val; {move}")

    train, test = (_find(folder / part, size) for part in ("train", held_out))
    if train.classes != test.classes:
        alone = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise TrlError(f"{folder}: train and {held_out} must have the same classes; only one of them has {alone}")
    if len(train.classes) < 2:
        raise TrlError(f"{folder}: has only the class {train.classes[0]}; give at least two classes")
    images = [_read(part, size) for part in (train, test)]
    if all(bool((image == image[:1]).all()) for part in images for image in part):
        images = [part[:, :1].contiguous() for part in images]
    sets = [ImageSet(x, torch.tensor(part.targets)) for x, part in zip(images, (train, test), strict=True)]
    return Dataset("image_folder", sets[0], sets[1], tuple(train.classes))


def _find(folder: Path, size: int) -> Any:
    """torchvision's ImageFolder of `folder`; its images are uint8 [3, size, size]."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder, loader=partial(_load, size=size))
    except OSError as error:  # no classes, an empty class, or an unreadable folder
        raise TrlError(f"{folder}: {' '.join(str(error).split())}") from None
    files = sum(len(files) for _, _, files in os.walk(folder, followlinks=True))
    if files > len(found):
        say(f"warning: {folder}: skipped {files - len(found)} files without an image's file extension")
    return found


def _read(part: Any, size: int) -> Tensor:
    """All images, uint8 [n, 3, size, size]."""
    try:
        images = torch.empty(len(part), 3, size, size, dtype=torch.uint8)
    except RuntimeError:
        raise TrlError(
            f"{part.root}: {len(part)} images of {size}×{size} do not fit in memory: use a smaller `size`"
        ) from None
    with Progress("image_folder", len(part), "images") as progress:
        for i, (image, _) in enumerate(part):
            images[i] = image
            progress.update()
    return images


def _load(path: str, size: int) -> Tensor:
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning), Image.open(path) as file:
            _check(file)
            image = ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of all kinds
        raise TrlError(f"{path}: {in_one_line(error)}; save it as a plain 8-bit image, or delete it") from None
    side = min(image.size)  # crop first: resizing first would enlarge a long strip
    tensor: Tensor = pil_to_tensor(resize(center_crop(image, [side, side]), [size, size], antialias=True))
    return tensor


def _check(image: Any) -> None:
    """TrlError for images that conversion to RGB would change silently."""
    if getattr(image, "n_frames", 1) > 1:
        raise TrlError(f"holds {image.n_frames} images")
    if image.mode == "F" or image.mode.startswith("I"):
        raise TrlError("has more than 8 bits per channel")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise TrlError("is partly transparent")
