"""A kernel density estimate per class, whose kernels spread along the lines to neighbouring images."""

import numpy as np

from trl.common.numbers import Count
from trl.data import ImageSet
from trl.proxies.base import Sampler, by_class, sampler


def kde(train: ImageSet, classes: int, seed: int, *, neighbours: Count = 5) -> Sampler:
    """Points uniformly between an image and one of its `neighbours` nearest ones of the class (by ℓ2).

    These are the samples of SMOTE (Chawla et al. 2002). A class of m images has at most m - 1 neighbours; the only
    image of a class is its own.
    """
    from sklearn.neighbors import NearestNeighbors

    images = by_class(train)
    nearest = {}
    for k, pixels in images.items():
        count = min(neighbours + 1, len(pixels))
        found = NearestNeighbors(n_neighbors=count).fit(pixels).kneighbors(pixels, return_distance=False)
        nearest[k] = found[:, 1:] if count > 1 else found  # the first is the image itself, or its copy

    def draw(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        pixels = np.empty((len(labels), train.images[0].numel()), np.float32)
        for k in np.unique(labels):
            rows = np.flatnonzero(labels == k)
            first = generator.integers(len(images[k]), size=len(rows))
            second = nearest[k][first, generator.integers(nearest[k].shape[1], size=len(rows))]
            weight = generator.uniform(size=(len(rows), 1))
            pixels[rows] = (1 - weight) * images[k][first] + weight * images[k][second]
        return pixels

    return sampler(train, seed, draw)
