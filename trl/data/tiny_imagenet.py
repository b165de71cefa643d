"""Tiny ImageNet (Stanford CS231n): 100,000 + 10,000 colour images of 64×64 in 200 classes.

The labels of its test images are not public, so its validation images serve as test images here.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.progress import Progress
from trl.data.base import Dataset, ImageSet
from trl.data.raw import broken, cache_folder, downloading, find_folder, read

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIDE = 64  # pixels


def tiny_imagenet(raw: Path | None) -> Dataset:
    """Tiny ImageNet, from <raw>/tiny-imagenet-200; labels number the sorted WordNet ids, as in ImageFolder.

    Only the archive has a known checksum. For an unpacked folder, every listed image must exist, decode completely and
    be 64×64; grey images become RGB.
    """
    folder = find_folder(raw, FOLDER) if raw else _download()
    wnids = sorted(line for (line, *_) in _table(folder / "wnids.txt"))
    number = {wnid: label for label, wnid in enumerate(wnids)}
    names = {wnid: words.split(",")[0] for wnid, words, *_ in _table(folder / "words.txt", columns=2)}

    train = [(path, number[wnid]) for wnid in wnids for path in _training_files(folder / "train" / wnid)]
    annotations = folder / "val" / "val_annotations.txt"
    test = []
    for file, wnid, *_ in _table(annotations, columns=2):
        if wnid not in number:
            raise broken(annotations, f"assigns {file} to the class {wnid}, which wnids.txt does not list")
        test.append((folder / "val" / "images" / file, number[wnid]))
    return Dataset("tiny_imagenet", _image_set(train), _image_set(test), tuple(names.get(w, w) for w in wnids))


def _download() -> Path:
    from torchvision.datasets.utils import download_and_extract_archive

    folder, unpacked = cache_folder() / FOLDER, cache_folder() / f"{FOLDER}.partial"
    if not folder.is_dir():
        with downloading("tiny_imagenet"):
            download_and_extract_archive(URL, cache_folder(), extract_root=unpacked, md5=MD5)
            (unpacked / FOLDER).rename(folder)  # last, so that a partial extraction is not mistaken for a complete one
            unpacked.rmdir()
    return folder


def _table(path: Path, columns: int = 1) -> list[list[str]]:
    """The tab-separated rows of a text file; TrlError if there are none or one has too few columns."""
    rows = [line.split("\t") for line in read(path).decode(errors="replace").splitlines() if line.strip()]
    if not rows or min(map(len, rows)) < columns:
        raise broken(path, f"is not a table of {columns} or more columns")
    return rows


def _training_files(folder: Path) -> list[Path]:
    listing = folder / f"{folder.name}_boxes.txt"  # lists every image, so that a partial copy is noticed
    if listing.is_file():
        return sorted(folder / "images" / file for file, *_ in _table(listing))
    files = sorted(folder.glob("images/*.JPEG"))
    if not files:
        raise broken(folder / "images", "has no .JPEG files")
    return files


def _image_set(files: Sequence[tuple[Path, int]]) -> ImageSet:
    images = torch.empty(len(files), 3, SIDE, SIDE, dtype=torch.uint8)
    with Progress("tiny_imagenet", len(files), "images") as progress:
        for i, (path, _) in enumerate(files):
            images[i] = _image(path)
            progress.update()
    return ImageSet(images, torch.tensor([label for _, label in files]))


def _image(path: Path) -> Tensor:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    except FileNotFoundError:
        raise broken(path, "is listed but missing") from None
    except OSError as error:
        raise broken(path, f"cannot be decoded ({error})") from None
    if pixels.shape[1:] != (SIDE, SIDE):
        raise TrlError(f"{path}: {pixels.shape[2]}×{pixels.shape[1]} pixels, not {SIDE}×{SIDE}; use the original files")
    return pixels
