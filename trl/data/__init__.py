"""Data sets as uint8 images, one file per data set: a function of the raw folder that returns a Dataset."""

from trl.data.base import Dataset, ImageSet
from trl.data.load import load_dataset
from trl.data.loader import ShuffledStream, TrainingData
from trl.data.registry import DATASETS
from trl.data.samples import load_samples, save_samples
from trl.data.splits import Splits, load_splits, save_splits, split

__all__ = [
    "DATASETS",
    "Dataset",
    "ImageSet",
    "ShuffledStream",
    "Splits",
    "TrainingData",
    "load_dataset",
    "load_samples",
    "load_splits",
    "save_samples",
    "save_splits",
    "split",
]
