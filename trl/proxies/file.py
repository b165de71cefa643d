"""Samples that others made: a .npz file, streamed."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from trl.common.errors import TrlError, in_one_line
from trl.common.progress import batches
from trl.data import ImageSet
from trl.proxies.base import PART, Sampler

LAYOUTS = {"image": "label", "images": "labels"}  # [n,h,w,c], as CIFAR-10's sets are published; [n,c,h,w], as ours
SAVE = "save it with numpy.savez(FILE, images=…, labels=…), uint8 [n,c,h,w] and integers [n]"


def file(train: ImageSet, classes: int, seed: int, *, path: str, model: str | None = None) -> Sampler:
    """Images of the .npz file `path`, chosen at random without repetition, in the order of the file.

    It holds `image` uint8 [n,h,w,c] and `label` [n], as the published sets for CIFAR-10 do, or `images` uint8
    [n,c,h,w] and `labels` [n]. It is read in parts and never held in memory as a whole. Where it has no labels, `model`
    (the folder of a trained model) gives each image the class that it predicts.
    TrlError if the file is missing, truncated or damaged, lacks an array, has images of another shape or labels that
    are not classes, and if it has fewer images than are asked for.
    """
    source = Path(path).expanduser()
    with _opened(source) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        key = next((key for key in LAYOUTS if key in held), None)
        if key is None or (LAYOUTS[key] not in held and model is None):
            wanted = f"{LAYOUTS[key]} (or name a `model` to label its images)" if key else "images"
            raise TrlError(f"{source}: has no {wanted}, only {', '.join(held) or 'nothing'}; {SAVE}")
        with archive.open(f"{key}.npy") as member:
            shape, dtype = _header(member, source, key)
        c, h, w = train.shape
        expected = (h, w, c) if key == "image" else (c, h, w)
        if dtype != np.uint8 or shape[1:] != expected:
            size = ",".join(map(str, expected))
            raise TrlError(f"{source}: {key} is {dtype} {list(shape)}, not uint8 [n,{size}]; save them so")
        labels = _labels(archive, source, LAYOUTS[key], shape[0], classes) if LAYOUTS[key] in held else None
    label = _classifier(model, classes, train.shape) if labels is None and model else None

    def sample(n: int) -> Iterator[ImageSet]:
        if n > shape[0]:
            raise TrlError(f"{source}: has {shape[0]} images, fewer than the {n} asked for; lower `count`")
        chosen = np.zeros(shape[0], bool)
        chosen[np.random.default_rng(seed).choice(shape[0], n, replace=False)] = True
        with _opened(source) as archive, archive.open(f"{key}.npy") as member:
            _header(member, source, key)
            for part in batches(shape[0], PART):  # to the end, where its checksum is verified
                rows = np.flatnonzero(chosen[part])
                images = _rows(member, (part.stop - part.start, *expected), source)[rows]
                if key == "image":
                    images = images.transpose(0, 3, 1, 2)
                if len(rows):
                    x = torch.from_numpy(np.ascontiguousarray(images))
                    yield ImageSet(x, label(x) if label else torch.from_numpy(labels[part][rows]))  # type: ignore[index]

    return sample


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise TrlError(f"{path}: not a .npz file, truncated or damaged ({in_one_line(error)}); get it again") from None


def _header(member: IO[bytes], path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a .npy file, of which the values are still to be read."""
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(member)
    if by_columns and len(shape) > 1:
        raise TrlError(f"{path}: {key} is stored column by column; save it with numpy.ascontiguousarray")
    return shape, dtype


def _rows(member: IO[bytes], shape: tuple[int, ...], path: Path) -> np.ndarray:
    size = int(np.prod(shape))
    content = member.read(size)
    if len(content) < size:
        raise TrlError(f"{path}: its images end early; the file is damaged: get it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _labels(archive: zipfile.ZipFile, path: Path, key: str, n: int, classes: int) -> np.ndarray:
    with archive.open(f"{key}.npy") as member:
        labels = npy.read_array(member, allow_pickle=False)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise TrlError(f"{path}: {key} is {labels.dtype} {list(labels.shape)}, not integers [{n}], one for each image")
    if n and not (labels.min() >= 0 and labels.max() < classes):
        found = f"{labels.min()} to {labels.max()}"
        raise TrlError(f"{path}: {key} are {found}, but the classes are 0 to {classes - 1}; number them so")
    return labels.astype(np.int64)


def _classifier(folder: str, classes: int, shape: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """From uint8 images [n,c,h,w] to the classes that the model in `folder` predicts, int64 [n]."""
    from trl.models import load_model

    model = load_model(Path(folder).expanduser()).eval()

    @torch.no_grad()
    def label(images: Tensor) -> Tensor:
        return model(images.float() / 255).argmax(1)

    try:
        outputs = model(torch.zeros(1, *shape)).shape[1]
    except RuntimeError:
        raise TrlError(f"{folder}: the model does not take images of {shape}; name another one") from None
    if outputs != classes:
        raise TrlError(f"{folder}: the model has {outputs} classes, the data set {classes}; name another one")
    return label
