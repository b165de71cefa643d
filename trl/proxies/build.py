"""A proxy by its name and options, as params.yaml gives it."""

from typing import Any

from trl.data import ImageSet
from trl.proxies.base import Sampler
from trl.proxies.registry import PROXIES


def build_proxy(name: str, train: ImageSet, classes: int, seed: int = 0, **options: Any) -> Sampler:
    """The sampler of the proxy `name`, fitted to the training images `train`, which are of `classes` classes.

    TrlError for an unknown name or invalid options, and if the proxy cannot be fitted.
    """
    sampler: Sampler = PROXIES.build(name, train, classes, seed, **options)
    return sampler
