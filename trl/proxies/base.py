"""What a proxy is: a function (training images, number of classes, seed, *, options) → sampler.

It sees training images alone: what it learnt from others would make robust accuracy on these look too good.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from trl.common.progress import batches
from trl.data import ImageSet

PART = 1000  # images drawn at a time

Sampler = Callable[[int], Iterator[ImageSet]]
"""`sampler(n)` gives n labelled images of the training images' shape in parts; the same n gives the same images."""


def sampler(train: ImageSet, seed: int, draw: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Sampler:
    """Classes as frequent as in `train`, and what `draw` makes of them.

    `draw` takes classes int64 [m] and gives pixels [m, c·h·w] on the scale 0..255; they are rounded and cut to it.
    """

    def sample(n: int) -> Iterator[ImageSet]:
        generator = np.random.default_rng(seed)
        for part in batches(n, PART):
            labels = generator.choice(train.labels.numpy(), part.stop - part.start)
            pixels = np.rint(draw(labels, generator)).clip(0, 255).astype(np.uint8)
            yield ImageSet(torch.from_numpy(pixels).view(-1, *train.shape), torch.from_numpy(labels))

    return sample


def by_class(train: ImageSet) -> dict[int, np.ndarray]:
    """The images of each class that has any: float32 [m, c·h·w] on the scale 0..255."""
    return {k: flat(train.images[train.labels == k]) for k in np.unique(train.labels).tolist()}


def flat(images: Tensor) -> np.ndarray:
    """Images [n, …] as float32 [n, d]."""
    pixels: np.ndarray = images.flatten(1).float().numpy()
    return pixels
