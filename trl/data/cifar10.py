"""CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32×32."""

from pathlib import Path

import torch

from trl.data.base import Dataset, ImageSet
from trl.data.raw import cache_folder, downloading, find_folder, read, verify

SIZES = {
    "data_batch_1": 31_035_704,
    "data_batch_2": 31_035_320,
    "data_batch_3": 31_035_999,
    "data_batch_4": 31_035_696,
    "data_batch_5": 31_035_623,
    "test_batch": 31_035_526,
    "batches.meta": 158,
}


def cifar10(raw: Path | None) -> Dataset:
    """CIFAR-10, from <raw>/cifar-10-batches-py, the published Python version."""
    from torchvision.datasets import CIFAR10

    if raw is None:
        raw = cache_folder()
        with downloading("cifar10"):
            CIFAR10(raw, download=True)
    folder = find_folder(raw, CIFAR10.base_folder)
    md5 = {**dict(CIFAR10.train_list), **dict(CIFAR10.test_list), CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
    for file, size in SIZES.items():  # pickles: torchvision may only read the published bytes
        verify(folder / file, read(folder / file), size, "md5", md5[file])
    train, test = (CIFAR10(raw, train=part) for part in (True, False))
    train_set, test_set = (
        ImageSet(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return Dataset("cifar10", train_set, test_set, tuple(train.classes))
