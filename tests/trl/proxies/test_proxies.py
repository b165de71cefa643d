"""Each proxy: what it draws, from what alone, and that it draws the same again."""

from typing import Any

import numpy as np
import pytest
import torch

from trl.common.errors import TrlError
from trl.data import ImageSet, load_dataset, load_samples, save_samples
from trl.proxies import PROXIES, build_proxy

TRAIN = load_dataset("digits").train
FITTED = [name for name in PROXIES.names() if name != "file"]


def draw(name: str, train: ImageSet = TRAIN, n: int = 300, seed: int = 0, **options: Any) -> ImageSet:
    parts = list(build_proxy(name, train, 10, seed, **options)(n))
    return ImageSet(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def one_class(*rows: list[int]) -> ImageSet:
    return ImageSet(torch.tensor(rows, dtype=torch.uint8).view(len(rows), 1, 1, -1), torch.zeros(len(rows)).long())


@pytest.mark.parametrize("name", FITTED)
def test_images_are_as_the_training_images_and_the_same_for_a_seed(name: str) -> None:
    first = draw(name, n=2500)
    assert (len(first), first.shape) == (2500, TRAIN.shape)
    wanted = TRAIN.labels.bincount() / len(TRAIN)
    assert torch.allclose(first.labels.bincount(minlength=10) / 2500, wanted, atol=0.03)
    again, other = draw(name, n=2500), draw(name, n=2500, seed=1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("name", FITTED)
def test_a_class_of_one_image_can_be_drawn(name: str) -> None:
    train = ImageSet(TRAIN.images[:11], TRAIN.labels[:11])
    assert set(draw(name, train).labels.tolist()) <= set(train.labels.tolist())


@pytest.mark.parametrize("name", FITTED)
def test_unknown_options_are_one_line(name: str) -> None:
    with pytest.raises(TrlError, match=f"proxy {name}: depth: unknown key"):
        draw(name, depth=3)


def test_a_gaussian_has_the_classs_mean_and_covariance() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).multivariate_normal([100, 150], [[900, 500], [500, 400]], 4000))
    train = ImageSet(rows.round().clamp(0, 255).to(torch.uint8).view(-1, 1, 1, 2), torch.zeros(4000).long())
    drawn = draw("gaussian", train, n=4000).images.flatten(1).double()
    fitted = train.images.flatten(1).double()
    assert torch.allclose(drawn.mean(0), fitted.mean(0), atol=2)
    assert torch.allclose(drawn.T.cov(), fitted.T.cov(), rtol=0.1)
    line = draw("gaussian", train, n=1000, rank=1).images.flatten(1).double()
    values = torch.linalg.eigvalsh(line.T.cov())
    assert values[0] < 1 < 100 < values[1]  # rounding alone leaves the first component


def test_kde_draws_between_an_image_and_a_neighbour_of_its_class() -> None:
    train = one_class([0, 0], [10, 0], [200, 0], [210, 0])
    drawn = draw("kde", train, n=500, neighbours=1).images.flatten(1)
    assert not drawn[:, 1].any()
    low = drawn[:, 0] <= 10
    assert ((drawn[:, 0] >= 200) & (drawn[:, 0] <= 210) | low).all()
    assert set(drawn[low, 0].tolist()) == set(range(11))
    mixed = ImageSet(torch.cat([train.images, train.images + 5]), torch.arange(8) // 4)
    seen = draw("kde", mixed, n=500, neighbours=1)
    assert (seen.images[seen.labels == 1, 0, 0, 1] == 5).all()


def test_samples_are_written_in_parts_and_mapped(tmp_path: Any) -> None:
    parts = [ImageSet(TRAIN.images[i : i + 30], TRAIN.labels[i : i + 30]) for i in (0, 30, 60)]
    save_samples(parts, 90, TRAIN.shape, tmp_path / "samples")
    found = load_samples(tmp_path / "samples")
    assert torch.equal(found.images, TRAIN.images[:90])
    assert torch.equal(found.labels, TRAIN.labels[:90])
    for n in (89, 91):
        with pytest.raises(TrlError, match=f"90 images came, not {n}"):
            save_samples(parts, n, TRAIN.shape, tmp_path / "other")
    (tmp_path / "samples/labels.npy").write_bytes(b"nothing")
    for folder in ("samples", "missing"):
        with pytest.raises(TrlError, match=r"no samples of a proxy, or damaged .*run the stage proxy"):
            load_samples(tmp_path / folder)
