"""A data set: labelled uint8 images for training and for testing, and the names of the classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trl.common.errors import TrlError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, uint8 [n, c, h, w] in 0..255, and labels, int64 [n], counted from 0. TrlError otherwise."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise TrlError(f"images must be uint8 [n, c, h, w], not {images.dtype} {list(images.shape)}")
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise TrlError(f"labels must be int64 [n], not {labels.dtype} {list(labels.shape)}")
        if len(images) != len(labels):
            raise TrlError(f"{len(images)} images have {len(labels)} labels; each image needs one")
        if (labels < 0).any():
            raise TrlError(f"labels must start at 0, but one is {labels.min().item()}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.images.shape[1:]
        return c, h, w


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its published split. TrlError if training images, test images and classes do not match."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.train.shape != self.test.shape:
            raise TrlError(f"{self.name}: training images are {self.train.shape}, but test images {self.test.shape}")
        for part in (self.train, self.test):
            if (part.labels >= len(self.classes)).any():
                raise TrlError(
                    f"{self.name}: has a label {part.labels.max().item()}, but only {len(self.classes)} classes"
                )
