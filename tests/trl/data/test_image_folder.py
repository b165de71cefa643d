"""One's own images: what is read as what, and what is refused, by real files of each kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trl.common.errors import TrlError
from trl.data import Dataset, load_dataset, split

CLASSES = ("cat", "dog")


def pixels(seed: int, shape: tuple[int, ...] = (12, 16, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of colour images, 4 to train on and 2 to test on each."""
    for i, (part, name) in enumerate((part, name) for part in ("train", "test") for name in CLASSES):
        (tmp_path / part / name).mkdir(parents=True)
        for n in range(4 if part == "train" else 2):
            Image.fromarray(pixels(10 * i + n)).save(tmp_path / part / name / f"{n}.png")
    return tmp_path


def read(folder: Path, size: int = 8) -> Dataset:
    return load_dataset("image_folder", path=str(folder), size=size)


def test_images_labels_and_classes(folder: Path) -> None:
    data = read(folder, size=12)
    assert data.classes == CLASSES
    assert data.train.shape == data.test.shape == (3, 12, 12)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    # 12 rows of 16 pixels, 12 wide: the square in the middle, as it is
    expected = np.stack([pixels(n)[:, 2:14] for n in range(4)])
    assert np.array_equal(data.train.images[:4].permute(0, 2, 3, 1).numpy(), expected)


def test_val_holds_the_test_images_where_there_is_no_test(folder: Path) -> None:
    before = read(folder)
    (folder / "test").rename(folder / "val")
    assert torch.equal(read(folder).test.images, before.test.images)


def test_the_hash_follows_the_files(folder: Path) -> None:
    def found() -> str:
        return split(read(folder), validation=2, seed=0).sha256

    before = found()
    assert found() == before
    Image.fromarray(pixels(99)).save(folder / "test/cat/0.png")
    assert found() != before


def test_images_are_grey_only_if_all_are(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    data = read(folder, size=12)
    assert data.train.shape == data.test.shape == (1, 12, 12)
    assert np.array_equal(data.train.images[0, 0].numpy(), np.array(Image.open(folder / "train/cat/0.png"))[:, 2:14])
    Image.fromarray(pixels(0)).save(folder / "test/dog/1.png")
    assert read(folder).train.shape == (3, 8, 8)


def grey16(path: Path) -> None:
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(path)


def half_transparent(path: Path) -> None:
    Image.fromarray(np.full((12, 12, 4), 128, np.uint8), "RGBA").save(path)


def transparent_palette(path: Path) -> None:
    Image.fromarray(pixels(0)).quantize(8).save(path, transparency=0)


def animated(path: Path) -> None:
    frames = [Image.fromarray(pixels(n)) for n in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def truncated(path: Path) -> None:
    Image.fromarray(pixels(0, (64, 64, 3))).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def huge(path: Path) -> None:
    Image.new("1", (9_500, 9_500)).save(path)


def text(path: Path) -> None:
    path.write_text("no image")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("make", "suffix", "why"),
    [
        (grey16, ".png", "more than 8 bits"),
        (grey16, ".tif", "more than 8 bits"),
        (half_transparent, ".png", "partly transparent"),
        (transparent_palette, ".png", "partly transparent"),
        (animated, ".tiff", "holds 2 images"),
        (animated, ".webp", "holds 2 images"),
        (truncated, ".png", "OSError"),
        (truncated, ".jpg", "OSError"),
        (huge, ".png", "pixels"),
        (text, ".png", "cannot identify"),
        (Path.touch, ".jpeg", "cannot identify"),
        (dangling, ".png", "No such file"),
    ],
)
def test_an_image_that_would_be_changed_or_is_broken_is_named(
    folder: Path, make: Callable[[Path], object], suffix: str, why: str
) -> None:
    path = folder / f"train/dog/bad{suffix}"
    make(path)
    with pytest.raises(TrlError, match=why) as caught:
        read(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "CMYK"])
def test_other_modes_without_transparency_are_read_as_colours(folder: Path, mode: str) -> None:
    image = Image.fromarray(pixels(0)).convert(mode)
    image.save(folder / ("test/cat/0.tif" if mode == "CMYK" else "test/cat/0.png"))
    expected = np.array(image.convert("RGB"))[:, 2:14]
    if mode == "CMYK":
        (folder / "test/cat/0.png").unlink()
    assert np.array_equal(read(folder, size=12).test.images[0].permute(1, 2, 0).numpy(), expected)


def test_a_photograph_is_turned_as_its_exif_data_say(folder: Path) -> None:
    image = Image.fromarray(pixels(0, (12, 12, 3)))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(folder / "test/cat/0.png", exif=exif)
    assert np.array_equal(read(folder, size=12).test.images[0].permute(1, 2, 0).numpy(), np.array(image)[::-1, ::-1])


def test_a_long_strip_is_cut_before_it_is_enlarged(folder: Path) -> None:
    Image.new("RGB", (1, 40_000), "red").save(folder / "test/cat/0.png")  # 64 × 2,560,000 pixels the other way round
    assert read(folder, size=64).test.images[0, 0].min() == 255


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name)

    return change


def without_files(folder: Path) -> None:
    for file in (folder / "test/dog").iterdir():
        file.unlink()


def not_in_parts(folder: Path) -> None:
    for name in CLASSES:
        (folder / "train" / name).rename(folder / name)
    remove("train", "test")(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (remove("test"), r"has no folder test or val; move some images of each class"),
        (remove("train"), r"has no folder train; it needs train/CLASS"),
        (not_in_parts, r"has no folder train; it needs train/CLASS"),
        (remove("test/cat"), r"train and test must have the same classes; only one of them has cat"),
        (remove("train/cat"), r"train and test must have the same classes; only one of them has cat"),
        (remove("train/cat", "test/cat"), r"has only the class dog"),
        (remove("test/cat", "test/dog"), r"test: Couldn't find any class folder"),
        (without_files, r"test: Found no valid file for the classes dog"),
    ],
)
def test_a_folder_of_another_layout_says_how_to_mend_it(folder: Path, change: Any, why: str) -> None:
    change(folder)
    with pytest.raises(TrlError, match=why) as caught:
        read(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_too_few_or_too_large_images(folder: Path) -> None:
    with pytest.raises(TrlError, match="nowhere: no such folder"):
        read(folder / "nowhere")
    with pytest.raises(TrlError, match=r"do not fit in memory: use a smaller `size`"):
        read(folder, size=10**8)
    with pytest.raises(TrlError, match=r"validation is 1; with the 2 classes of image_folder, give 2 to 6"):
        split(read(folder), validation=1, seed=0)
    with pytest.raises(TrlError, match="size: should be greater than or equal to 1"):
        read(folder, size=0)
    with pytest.raises(TrlError, match="data set image_folder: path: is missing"):
        load_dataset("image_folder", size=8)
    with pytest.raises(TrlError, match="data set digits: path: unknown key; allowed: none"):
        load_dataset("digits", path=str(folder))


def test_files_that_are_left_out_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train/cat/notes.txt").write_text("a")
    (folder / "train/cat/b.heic").write_text("b")
    assert len(read(folder).train) == 8
    assert "train: skipped 2 files" in capsys.readouterr().out
