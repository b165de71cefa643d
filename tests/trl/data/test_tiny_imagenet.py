import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.damage import flip_byte, half
from trl.common.errors import TrlError
from trl.data import load_dataset, tiny_imagenet

WNIDS = ["n02", "n01", "n03"]  # as in the real list, not sorted


def write_jpeg(path, seed, mode="RGB", side=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.fixture
def raw(tmp_path):
    """A raw folder with two training images and one validation image for each of three classes; one image is grey."""
    folder = tmp_path / "raw" / "tiny-imagenet-200"
    for i, wnid in enumerate(WNIDS):
        for j in range(2):
            write_jpeg(folder / f"train/{wnid}/images/{wnid}_{j}.JPEG", 10 * i + j, "L" if (i, j) == (2, 1) else "RGB")
        boxes = "".join(f"{wnid}_{j}.JPEG\t0\t0\t63\t63\n" for j in range(2))
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text(boxes)
        write_jpeg(folder / f"val/images/val_{i}.JPEG", 100 + i)
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n" for i, wnid in enumerate(WNIDS)]
    (folder / "val/val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tbullfrog\n")
    return folder.parent


def check(dataset, folder):
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.test.labels.tolist() == [1, 0, 2]
    assert dataset.classes == ("goldfish", "bullfrog", "n03")
    files = [f"{wnid}/images/{wnid}_{j}.JPEG" for wnid in sorted(WNIDS) for j in range(2)]
    assert torch.equal(dataset.train.images, torch.stack([pixels(folder / "train" / file) for file in files]))
    files = [f"val_{i}.JPEG" for i in range(3)]
    assert torch.equal(dataset.test.images, torch.stack([pixels(folder / "val/images" / file) for file in files]))


def test_reads_the_folder(raw):
    dataset = load_dataset("tiny_imagenet", raw)
    check(dataset, raw / "tiny-imagenet-200")
    grey = dataset.train.images[5]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_the_lists_of_boxes_are_not_needed(raw):
    for listing in raw.glob("*/train/*/*_boxes.txt"):
        listing.unlink()
    check(load_dataset("tiny_imagenet", raw), raw / "tiny-imagenet-200")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TrlError, match=f"{tmp_path}: has no folder tiny-imagenet-200; .*unset TRL_RAW_DATA"):
        load_dataset("tiny_imagenet", tmp_path)


@pytest.mark.parametrize(
    "file",
    ["wnids.txt", "words.txt", "val/val_annotations.txt", "val/images/val_1.JPEG", "train/n01/images/n01_0.JPEG"],
)
def test_a_missing_file_is_named(raw, file):
    path = raw / "tiny-imagenet-200" / file
    path.unlink()
    with pytest.raises(TrlError, match=r"(missing|No such file).*unset TRL_RAW_DATA") as error:
        load_dataset("tiny_imagenet", raw)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("train/n03/images/n03_1.JPEG", half, "cannot be decoded .*truncated"),
        ("val/images/val_2.JPEG", lambda content: b"<html>" + content, "cannot be decoded .*identify"),
        ("wnids.txt", lambda content: b"\n", "is not a table"),
        ("words.txt", lambda content: b"n01 goldfish", "is not a table of 2 or more columns"),
        ("val/val_annotations.txt", lambda content: b"val_0.JPEG\tn09\n", "assigns val_0.JPEG to the class n09"),
    ],
)
def test_a_broken_file_is_named(raw, file, change, why):
    path = raw / "tiny-imagenet-200" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TrlError, match=why) as error:
        load_dataset("tiny_imagenet", raw)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_an_image_of_another_size_is_named(raw):
    path = raw / "tiny-imagenet-200/val/images/val_0.JPEG"
    write_jpeg(path, 0, side=32)
    with pytest.raises(TrlError, match=f"{path}: 32×32 pixels, not 64×64"):
        load_dataset("tiny_imagenet", raw)


def test_a_class_without_images_is_named(raw):
    folder = raw / "tiny-imagenet-200/train/n01"
    shutil.rmtree(folder)
    with pytest.raises(TrlError, match=f"{folder / 'images'}: has no .JPEG files"):
        load_dataset("tiny_imagenet", raw)


@pytest.fixture
def archive(raw, address, monkeypatch):
    """The raw folder as the publisher's zip file, offered for download."""
    path = Path(shutil.make_archive(str(raw / "archive"), "zip", raw, "tiny-imagenet-200"))
    monkeypatch.setattr(tiny_imagenet, "URL", f"{address}/raw/archive.zip")
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_download_goes_to_the_cache_once(archive, cache):
    check(load_dataset("tiny_imagenet"), cache / "tiny-imagenet-200")
    archive.unlink()
    check(load_dataset("tiny_imagenet"), cache / "tiny-imagenet-200")


def test_a_damaged_download_is_refused(archive, cache):
    archive.write_bytes(flip_byte(archive.read_bytes()))
    with pytest.raises(TrlError, match=r"tiny_imagenet: download failed .*corrupted"):
        load_dataset("tiny_imagenet")
    assert not (cache / "tiny-imagenet-200").exists()


def test_a_failed_download_says_what_else_can_be_done(archive, cache):
    archive.unlink()
    with pytest.raises(TrlError, match=r"tiny_imagenet: download failed .*set TRL_RAW_DATA to a folder"):
        load_dataset("tiny_imagenet")
