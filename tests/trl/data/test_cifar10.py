import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from tests.helpers.damage import flip_byte, half
from trl.common.errors import TrlError
from trl.data import cifar10, load_dataset

FILES = list(cifar10.SIZES)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A raw folder with a CIFAR-10 of two images a file, whose checksums are expected; and all pixels by file."""
    folder, rng, pixels, md5 = tmp_path / "cifar-10-batches-py", np.random.default_rng(0), {}, {}
    folder.mkdir()
    for label, file in enumerate(FILES):
        pixels[file] = rng.integers(256, size=(2, 3072), dtype=np.uint8)
        entry = {"data": pixels[file], "labels": [label, label + 1]}
        content = pickle.dumps({"label_names": list("abcdefghij")} if file == "batches.meta" else entry)
        (folder / file).write_bytes(content)
        md5[file] = hashlib.md5(content).hexdigest()
        monkeypatch.setitem(cifar10.SIZES, file, len(content))
    monkeypatch.setattr(CIFAR10, "train_list", [[file, md5[file]] for file in FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return tmp_path, pixels


def check_tiny(dataset, pixels):
    train = np.concatenate([pixels[file] for file in FILES[:5]]).reshape(-1, 3, 32, 32)
    assert torch.equal(dataset.train.images, torch.from_numpy(train))
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels["test_batch"].reshape(-1, 3, 32, 32)))
    assert dataset.train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert dataset.test.labels.tolist() == [5, 6]
    assert dataset.classes == tuple("abcdefghij")


def test_reads_the_batches(tiny):
    check_tiny(load_dataset("cifar10", tiny[0]), tiny[1])


def test_the_cache_is_used_without_a_raw_folder(tiny, cache):
    cache.mkdir(parents=True)
    (tiny[0] / "cifar-10-batches-py").rename(cache / "cifar-10-batches-py")
    check_tiny(load_dataset("cifar10"), tiny[1])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (half, r"truncated: [\d,]+ of [\d,]+ bytes"),
        (flip_byte, "md5 is [0-9a-f]{32}, not [0-9a-f]{32}: damaged or another version"),
    ],
)
def test_a_broken_file_is_named(tiny, file, change, why):
    path = tiny[0] / "cifar-10-batches-py" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TrlError, match=f"{why}; replace it") as error:
        load_dataset("cifar10", tiny[0])
    assert str(error.value).startswith(f"{path}: ")


def test_a_strange_pickle_is_not_opened(tiny):
    opened = tiny[0] / "opened"
    path = tiny[0] / "cifar-10-batches-py" / "data_batch_3"

    class Trap:
        def __reduce__(self):
            return opened.touch, ()

    path.write_bytes(pickle.dumps((Trap(), "x" * cifar10.SIZES["data_batch_3"])))
    with pytest.raises(TrlError, match="another version"):
        load_dataset("cifar10", tiny[0])
    assert not opened.exists()


def test_what_is_missing_is_named(tiny):
    path = tiny[0] / "cifar-10-batches-py" / "data_batch_4"
    path.unlink()
    with pytest.raises(TrlError, match=f"{path}: cannot be read .*unset TRL_RAW_DATA"):
        load_dataset("cifar10", tiny[0])
    with pytest.raises(TrlError, match=r"mine: has no folder cifar-10-batches-py; .*unset TRL_RAW_DATA"):
        load_dataset("cifar10", tiny[0] / "mine")


def test_a_failed_download_says_what_else_can_be_done(cache, address, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", f"{address}/cifar-10-python.tar.gz")
    with pytest.raises(TrlError, match=r"cifar10: download failed .*set TRL_RAW_DATA to a folder") as error:
        load_dataset("cifar10")
    assert "\n" not in str(error.value)


def test_the_real_cifar10(real):
    raw = real("cifar-10-batches-py")
    dataset = load_dataset("cifar10", raw)
    assert (dataset.train.images.shape, dataset.test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert dataset.train.labels.bincount().tolist() == [5000] * 10
    means = dataset.train.images.float().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    image, label = CIFAR10(raw, train=False)[7]
    assert np.array_equal(dataset.test.images[7].permute(1, 2, 0).numpy(), np.asarray(image))
    assert dataset.test.labels[7] == label
    assert dataset.classes[label] == "frog"


@pytest.mark.parametrize(("change", "why"), [(half, "truncated"), (flip_byte, "md5 is")])
def test_a_broken_real_batch(real, broken_copy, change, why):
    raw = broken_copy(real("cifar-10-batches-py") / "cifar-10-batches-py", "data_batch_2", change)
    with pytest.raises(TrlError, match=f"data_batch_2: {why}"):
        load_dataset("cifar10", raw)
