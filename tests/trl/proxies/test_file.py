"""Samples from a file: both layouts, memory, and what is refused in one line."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trl.common.errors import TrlError
from trl.data import ImageSet, save_samples
from trl.models import build_model, save_model
from trl.proxies import build_proxy

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2300, 3, 4, 5), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 2300)
TRAIN = ImageSet(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), torch.zeros(1).long())


def read(path: Path, n: int = 2300, train: ImageSet = TRAIN, **options: Any) -> ImageSet:
    parts = list(build_proxy("file", train, 10, 0, path=str(path), **options)(n))
    return ImageSet(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_layouts_are_read(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "ours.npz", images=IMAGES, labels=LABELS)
    save(tmp_path / "published.npz", image=IMAGES.transpose(0, 2, 3, 1).copy(), label=LABELS.astype(np.int32))
    for name in ("ours", "published"):
        found = read(tmp_path / f"{name}.npz")
        assert np.array_equal(found.images.numpy(), IMAGES)
        assert np.array_equal(found.labels.numpy(), LABELS)


def test_a_part_is_chosen_at_random_without_repetition(tmp_path: Path) -> None:
    images = np.arange(2300, dtype=np.uint16).view(np.uint8).reshape(2300, 1, 1, 2)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(2300) % 10)
    train = ImageSet(torch.zeros(1, 1, 1, 2, dtype=torch.uint8), torch.zeros(1).long())
    found = read(tmp_path / "x.npz", 1500, train)
    number = found.images.numpy().reshape(-1, 2).copy().view(np.uint16)[:, 0].astype(int)
    assert len(set(number)) == 1500
    assert 1000 < number.mean() < 1300
    assert (found.labels.numpy() == number % 10).all()


@pytest.mark.parametrize("key", ["image", "images"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, key: str) -> None:
    images = np.zeros((200_000, 1, 16, 16) if key == "images" else (200_000, 16, 16, 1), np.uint8)  # 51 MB
    np.savez(tmp_path / "x.npz", **{key: images, key.replace("image", "label"): np.zeros(200_000, np.uint8)})
    del images
    train = ImageSet(torch.zeros(1, 1, 16, 16, dtype=torch.uint8), torch.zeros(1).long())
    tracemalloc.start()
    save_samples(
        build_proxy("file", train, 10, 0, path=str(tmp_path / "x.npz"))(200_000), 200_000, train.shape, tmp_path
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_a_model_labels_what_has_no_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("mlp", 10, (3, 4, 5), width=16).eval()
    save_model(model, tmp_path / "model")
    np.savez(tmp_path / "x.npz", images=IMAGES)
    found = read(tmp_path / "x.npz", model=str(tmp_path / "model"))
    assert torch.equal(found.labels, model(torch.from_numpy(IMAGES).float() / 255).argmax(1))
    save_model(build_model("mlp", 7, (3, 4, 5), width=16), tmp_path / "other")
    with pytest.raises(TrlError, match="the model has 7 classes, the data set 10"):
        read(tmp_path / "x.npz", model=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, r"has no label \(or name a `model` to label its images\), only image; save it with"),
        ({"labels": LABELS}, "has no images, only labels; save it with"),
        ({}, "has no images, only nothing"),
        ({"image": IMAGES, "label": LABELS}, r"image is uint8 \[2300, 3, 4, 5\], not uint8 \[n,4,5,3\]"),
        ({"images": IMAGES[:, 0], "labels": LABELS}, r"images is uint8 \[2300, 4, 5\], not uint8 \[n,3,4,5\]"),
        ({"images": IMAGES / 255, "labels": LABELS}, r"images is float64 \[2300, 3, 4, 5\], not uint8"),
        ({"images": np.asfortranarray(IMAGES), "labels": LABELS}, "images is stored column by column"),
        ({"images": IMAGES, "labels": LABELS + 1}, "labels are 1 to 10, but the classes are 0 to 9"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels are -1 to 8, but the classes are 0 to 9"),
        ({"images": IMAGES, "labels": LABELS[1:]}, r"labels is int64 \[2299\], not integers \[2300\]"),
        ({"images": IMAGES, "labels": LABELS / 2}, r"labels is float64 \[2300\], not integers \[2300\]"),
        ({"images": IMAGES, "labels": np.array([None])}, "not a .npz file, truncated or damaged"),
        ({"images": IMAGES[:5], "labels": LABELS[:5]}, "has 5 images, fewer than the 2300 asked for; lower `count`"),
    ],
)
def test_what_it_cannot_use_is_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(TrlError, match=message) as caught:
        read(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, share: float) -> None:
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrlError, match=r"x.npz: not a .npz file, truncated or damaged"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_is_found(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[70_000] ^= 255
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(TrlError, match=r"x.npz: not a .npz file, truncated or damaged"):
        read(tmp_path / "x.npz", 10)


def test_a_missing_file_and_another_format_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrlError, match=r"missing.npz: cannot be read \(No such file or directory\)"):
        read(tmp_path / "missing.npz")
    np.save(tmp_path / "x.npy", IMAGES)
    with pytest.raises(TrlError, match=r"x.npy: not a .npz file"):
        read(tmp_path / "x.npy")
