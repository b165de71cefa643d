"""Noise: a proxy that knows nothing of the data, to compare others with."""

from trl.data import ImageSet
from trl.proxies.base import Sampler, sampler


def noise(train: ImageSet, classes: int, seed: int) -> Sampler:
    """Each pixel uniform in 0..255, whatever the class."""
    d = train.images[0].numel()
    return sampler(train, seed, lambda labels, generator: generator.uniform(0, 255, (len(labels), d)))
