"""A Gaussian per class."""

import numpy as np

from trl.common.numbers import Count
from trl.data import ImageSet
from trl.proxies.base import Sampler, by_class, sampler


def gaussian(train: ImageSet, classes: int, seed: int, *, rank: Count = 16) -> Sampler:
    """A Gaussian per class, with the class's mean and its covariance along the `rank` principal components.

    A class of m images has at most m - 1 of these; one of a single image is that image.
    """
    from sklearn.decomposition import PCA

    means, scaled = {}, {}
    for k, pixels in by_class(train).items():
        means[k], scaled[k] = pixels[0], np.zeros((1, pixels.shape[1]), np.float32)
        if len(pixels) > 1:
            found = PCA(min(rank, len(pixels) - 1, pixels.shape[1]), random_state=seed % 2**32).fit(pixels)
            means[k] = found.mean_
            scaled[k] = np.sqrt(found.explained_variance_)[:, None] * found.components_

    def draw(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        pixels = np.stack([means[k] for k in labels])
        for k in np.unique(labels):
            rows = labels == k
            pixels[rows] += generator.standard_normal((rows.sum(), len(scaled[k]))) @ scaled[k]
        return pixels

    return sampler(train, seed, draw)
