"""Batches for training: which images in which step, and the images themselves, resident on the device."""

import numpy as np
import torch
from torch import Tensor

from trl.data.augment import augment
from trl.data.base import ImageSet
from trl.errors import TrlError


class ShuffledStream:
    """Endless shuffled batches of indices into `length` images, as a function of the step: a resume needs no state.

    Every epoch is a new permutation, drawn from `seed` and the epoch; what is left after `per_epoch` full batches is
    dropped. TrlError if not even one batch can be filled.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= length:
            raise TrlError(f"batch_size is {batch_size}, but there are {length} training images; choose 1 to {length}")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.per_epoch = length // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """The images of batch `step` (from 0), int64 [batch_size]."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]


class TrainingData:
    """Training images kept as uint8 on `device` and augmented there; the options are those of `augment`.

    Random draws come from the global generator of the device.
    """

    def __init__(
        self,
        images: ImageSet,
        device: torch.device | str,
        crop: int = 0,
        flip: bool = False,
        saturation: float = 0.0,
    ) -> None:
        if saturation and images.shape[0] != 3:
            raise TrlError(f"saturation needs RGB images, these have {images.shape[0]} channel(s); set it to 0")
        self.crop, self.flip, self.saturation = crop, flip, saturation
        self.images, self.labels = images.images.to(device), images.labels.to(device)
        # The images in order of their classes: class k is by_class[first[k] : first[k] + count[k]].
        self._by_class = self.labels.argsort(stable=True)
        self._rank = self._by_class.argsort()
        self._count = self.labels.bincount()
        self._first = self._count.cumsum(0) - self._count

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images, float32 [n, c, h, w] in [0, 1], and labels, int64 [n], on the device."""
        indices = indices.to(self.labels.device, non_blocking=True)
        x = self.images[indices].to(torch.float32).div_(255)
        return augment(x, self.crop, self.flip, self.saturation), self.labels[indices]

    def same_class(self, indices: Tensor) -> Tensor:
        """For each image another one of its class, uniformly at random; itself if its class has no other. int64 [n]."""
        indices = indices.to(self.labels.device, non_blocking=True)
        labels = self.labels[indices]
        first, count = self._first[labels], self._count[labels]
        shift = 1 + torch.randint(2**62, labels.shape, device=labels.device) % (count - 1).clamp(min=1)
        return self._by_class[first + (self._rank[indices] - first + shift) % count]
