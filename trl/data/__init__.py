"""Data sets as uint8 images on the device: one file per data set, each a function (raw folder or None) → Dataset."""

import os
from pathlib import Path

from trl.data.base import Dataset, ImageSet
from trl.data.loader import ShuffledStream, TrainingData
from trl.data.splits import Splits, load_splits, save_splits, split
from trl.registry import Registry

__all__ = [
    "DATASETS",
    "Dataset",
    "ImageSet",
    "ShuffledStream",
    "Splits",
    "TrainingData",
    "load_dataset",
    "load_splits",
    "save_splits",
    "split",
]

DATASETS = Registry(
    "data set",
    {
        "digits": "trl.data.digits:digits",
        "mnist": "trl.data.mnist:mnist",
        "fashion_mnist": "trl.data.mnist:fashion_mnist",
        "cifar10": "trl.data.cifar10:cifar10",
        "tiny_imagenet": "trl.data.tiny_imagenet:tiny_imagenet",
    },
)


def load_dataset(name: str, raw: Path | None = None) -> Dataset:
    """The data set `name`, read from the folder `raw` (default: what TRL_RAW_DATA names) or else downloaded.

    Downloads go to the user's cache ($XDG_CACHE_HOME/trl or ~/.cache/trl). Either way the files are verified: TrlError
    names one that is missing, truncated or not the publisher's.
    """
    folder = raw or os.environ.get("TRL_RAW_DATA") or None
    dataset: Dataset = DATASETS.get(name)(Path(folder).expanduser() if folder else None)
    return dataset
