"""Labelled images in a folder, of any number: written in parts, and mapped into memory instead of read."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from trl.common.errors import TrlError
from trl.data.base import ImageSet

FILES = ("images.npy", "labels.npy")  # uint8 [n,c,h,w] and int64 [n]


def save_samples(parts: Iterable[ImageSet], n: int, shape: tuple[int, int, int], folder: Path) -> ImageSet:
    """Write the `n` images of `shape` (c, h, w) that the `parts` hold together, and return them as `load_samples`.

    TrlError if the folder cannot be written, or if there are not n.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        images = open_memmap(folder / FILES[0], "w+", np.uint8, (n, *shape))
        labels = np.empty(n, np.int64)
        done = 0
        for part in parts:
            if done + len(part) <= n:
                images[done : done + len(part)] = part.images.numpy()
                labels[done : done + len(part)] = part.labels.numpy()
            done += len(part)
        images.flush()
        np.save(folder / FILES[1], labels)
    except OSError as error:
        raise TrlError(f"{folder}: cannot be written ({error.strerror}): free space or check permissions") from None
    if done != n:
        raise TrlError(f"{folder}: {done} images came, not {n}")
    return load_samples(folder)


def load_samples(folder: Path) -> ImageSet:
    """The images in `folder`, mapped: they are read from the file where they are used. TrlError if damaged."""
    try:
        images, labels = (np.load(folder / file, mmap_mode="c", allow_pickle=False) for file in FILES)
        return ImageSet(torch.from_numpy(images), torch.from_numpy(np.array(labels)))
    except (OSError, ValueError, TypeError, EOFError, TrlError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise TrlError(f"{folder}: no samples of a proxy, or damaged ({why}); run the stage proxy") from None
