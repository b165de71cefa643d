"""Batches for training: which images in which step, and the images themselves, on the device or read ahead of it."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.data.augment import augment
from trl.data.base import ImageSet


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
    """Training images as uint8, augmented on `device`; the options are those of `augment`.

    They lie on the device, or with `stream` where they are (in the computer's memory, or in the file that
    `load_splits` mapped into it): batches announced to `ahead` are then read by a thread meanwhile. `stream` None is
    True where they would fill more than half of a GPU's free memory. What is drawn, and so every batch, is the same.
    Random draws come from the global generator of the device. `classes` is how many the labels need.
    """

    def __init__(
        self,
        images: ImageSet,
        device: torch.device | str,
        crop: int = 0,
        flip: bool = False,
        saturation: float = 0.0,
        stream: bool | None = None,
    ) -> None:
        if saturation and images.shape[0] != 3:
            raise TrlError(f"saturation needs RGB images, these have {images.shape[0]} channel(s); set it to 0")
        self.crop, self.flip, self.saturation = crop, flip, saturation
        self.labels = images.labels.to(device)
        self._reader = _Reader(images.images) if _streams(images, self.labels.device, stream) else None
        self.images = images.images if self._reader else images.images.to(device)
        # The images in order of their classes: class k is by_class[first[k] : first[k] + count[k]].
        self._by_class = self.labels.argsort(stable=True)
        self._rank = self._by_class.argsort()
        self._count = self.labels.bincount()
        self.classes = len(self._count)
        self._first = self._count.cumsum(0) - self._count

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images, float32 [n, c, h, w] in [0, 1], and labels, int64 [n], on the device."""
        device = self.labels.device
        on_device = indices.to(device, non_blocking=True)
        if self._reader:
            rows = self._reader.rows(indices.cpu()).to(device, non_blocking=True)
        else:
            rows = self.images[on_device]
        x = rows.to(torch.float32).div_(255)
        return augment(x, self.crop, self.flip, self.saturation), self.labels[on_device]

    def ahead(self, indices: Tensor) -> None:
        """Start reading the images that a later `take` will ask for."""
        if self._reader:
            self._reader.ahead(indices)

    def same_class(self, indices: Tensor) -> Tensor:
        """For each image another one of its class, uniformly at random; itself if its class has no other. int64 [n]."""
        indices = indices.to(self.labels.device, non_blocking=True)
        labels = self.labels[indices]
        first, count = self._first[labels], self._count[labels]
        shift = 1 + torch.randint(2**62, labels.shape, device=labels.device) % (count - 1).clamp(min=1)
        return self._by_class[first + (self._rank[indices] - first + shift) % count]


def _streams(images: ImageSet, device: torch.device, stream: bool | None) -> bool:
    if stream is None and device.type == "cuda":
        return images.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2
    return bool(stream)


class _Reader:
    """Rows of images, read by a thread for those who say in time which they will want."""

    def __init__(self, images: Tensor) -> None:
        self._images, self._pin = images, torch.cuda.is_available()  # a pinned batch is copied while the GPU computes
        self._thread = ThreadPoolExecutor(1, "read ahead")
        self._asked: list[tuple[Tensor, Future[Tensor]]] = []

    def ahead(self, indices: Tensor) -> None:
        self._asked.append((indices, self._thread.submit(self._read, indices)))

    def rows(self, indices: Tensor) -> Tensor:
        for known, future in self._asked:
            if torch.equal(known, indices):
                self._asked = [asked for asked in self._asked if asked[0] is not known]
                return future.result()
        return self._read(indices)

    def _read(self, indices: Tensor) -> Tensor:
        rows = self._images[indices]
        return rows.pin_memory() if self._pin else rows
