"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28×28.

Checksums are of the decompressed files, because Debian strips name and time from Fashion-MNIST's gzip headers. With
both restored (31 August 2017, 10:50 UTC), its archives have the md5 sums that torchvision lists.
"""

import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl.data.base import Dataset, ImageSet
from trl.data.raw import broken, cache_folder, downloading, find_folder, read, verify

SIZES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def mnist(raw: Path | None) -> Dataset:
    """MNIST, from the four archives in <raw>/mnist."""
    from torchvision.datasets import MNIST

    folder = find_folder(raw, "mnist") if raw else _download("mnist", MNIST)
    return _dataset("mnist", folder, MNIST_SHA256, tuple("0123456789"))


def fashion_mnist(raw: Path | None) -> Dataset:
    """Fashion-MNIST, from the four archives in <raw>/fashion_mnist or, as in Debian, <raw>/fashion-mnist."""
    from torchvision.datasets import FashionMNIST

    folder = find_folder(raw, "fashion_mnist", "fashion-mnist") if raw else _download("fashion_mnist", FashionMNIST)
    return _dataset("fashion_mnist", folder, FASHION_SHA256, tuple(FashionMNIST.classes))


def _download(name: str, source: Any) -> Path:
    with downloading(name):
        source(cache_folder(), download=True)
    return cache_folder() / source.__name__ / "raw"


def _dataset(name: str, folder: Path, sha256: Mapping[str, str], classes: tuple[str, ...]) -> Dataset:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    with tempfile.TemporaryDirectory() as temporary:
        for file in SIZES:
            (Path(temporary) / file).write_bytes(_decompress(folder / f"{file}.gz", SIZES[file], sha256[file]))
        train, test = (
            ImageSet(
                read_image_file(f"{temporary}/{part}-images-idx3-ubyte").unsqueeze(1),
                read_label_file(f"{temporary}/{part}-labels-idx1-ubyte"),
            )
            for part in ("train", "t10k")
        )
    return Dataset(name, train, test, classes)


def _decompress(path: Path, size: int, sha256: str) -> bytes:
    archive, stream = read(path), zlib.decompressobj(wbits=31)  # 31: with a gzip header
    try:
        content = stream.decompress(archive)
    except zlib.error as error:
        raise broken(path, f"damaged ({error})") from None
    if not stream.eof:
        raise broken(path, f"truncated: {len(archive):,} bytes hold {len(content):,} of {size:,} decompressed bytes")
    verify(path, content, size, "sha256", sha256)
    return content
