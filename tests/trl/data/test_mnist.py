import gzip
import hashlib
import struct

import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

from tests.helpers.damage import flip_byte, half
from trl.common.errors import TrlError
from trl.data import load_dataset, mnist

FILES = list(mnist.SIZES)
SOURCES = {"mnist": MNIST, "fashion_mnist": FashionMNIST}


def idx(tensor):
    """A tensor as an IDX file."""
    return struct.pack(f">{1 + tensor.ndim}I", 0x800 + tensor.ndim, *tensor.shape) + tensor.numpy().tobytes()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A raw folder with an MNIST of 5 + 3 random images, whose checksums are expected; and its four tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    (tmp_path / "mnist").mkdir()
    for file in FILES:
        n, side = (5 if "train" in file else 3), (28, 28) if "images" in file else ()
        limit = 256 if side else 10
        tensors[file] = torch.randint(limit, (n, *side), generator=generator, dtype=torch.uint8)
        content = idx(tensors[file])
        monkeypatch.setitem(mnist.SIZES, file, len(content))
        monkeypatch.setitem(mnist.MNIST_SHA256, file, hashlib.sha256(content).hexdigest())
        (tmp_path / "mnist" / f"{file}.gz").write_bytes(gzip.compress(content))
    return tmp_path, tensors


def check_tiny(dataset, tensors):
    for part, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        assert torch.equal(part.images, tensors[f"{prefix}-images-idx3-ubyte"].unsqueeze(1))
        assert torch.equal(part.labels, tensors[f"{prefix}-labels-idx1-ubyte"].long())


def test_reads_the_four_archives(tiny):
    raw, tensors = tiny
    dataset = load_dataset("mnist", raw)
    check_tiny(dataset, tensors)
    assert dataset.classes == tuple("0123456789")


def test_raw_folder_from_the_environment(tiny, monkeypatch):
    raw, tensors = tiny
    monkeypatch.setenv("TRL_RAW_DATA", str(raw))
    check_tiny(load_dataset("mnist"), tensors)


def test_another_packaging_of_the_same_content_passes(tiny):
    raw, tensors = tiny
    for file in FILES:
        path = raw / "mnist" / f"{file}.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=1))
    check_tiny(load_dataset("mnist", raw), tensors)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (half, r"truncated: [\d,]+ bytes hold [\d,]+ of [\d,]+ decompressed"),
        (lambda content: content[:-4], "truncated: "),
        (lambda content: b"", "truncated: 0 bytes hold 0 of"),
        (flip_byte, "damaged"),
        (lambda content: b"<html>" + content, "damaged .*header"),
        (
            lambda content: gzip.compress(flip_byte(gzip.decompress(content))),
            "sha256 is [0-9a-f]{64}, not ",
        ),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), r"truncated: [\d,]+ of [\d,]+ bytes"),
    ],
)
def test_a_broken_archive_is_named(tiny, file, change, why):
    path = tiny[0] / "mnist" / f"{file}.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TrlError, match=why) as error:
        load_dataset("mnist", tiny[0])
    assert str(error.value).startswith(f"{path}: ")
    assert "replace it" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_archive_is_named(tiny, file):
    path = tiny[0] / "mnist" / f"{file}.gz"
    path.unlink()
    with pytest.raises(TrlError, match=r"No such file.*unset TRL_RAW_DATA") as error:
        load_dataset("mnist", tiny[0])
    assert str(path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TrlError, match=f"{tmp_path}: has no folder mnist; .*unset TRL_RAW_DATA"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(TrlError, match="no folder fashion_mnist or fashion-mnist"):
        load_dataset("fashion_mnist", tmp_path)


def test_download_goes_to_the_cache_and_is_verified(tiny, cache, address, monkeypatch):
    raw, tensors = tiny
    archives = [raw / "mnist" / f"{file}.gz" for file in FILES]
    md5 = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in archives]
    monkeypatch.setattr(MNIST, "resources", md5)
    monkeypatch.setattr(MNIST, "mirrors", [f"{address}/mnist/"])
    check_tiny(load_dataset("mnist"), tensors)
    broken = cache / "MNIST" / "raw" / archives[0].name
    assert broken.is_file()
    broken.write_bytes(half(broken.read_bytes()))
    with pytest.raises(TrlError, match=f"{broken}: truncated.*delete {cache / 'MNIST'} to download it again"):
        load_dataset("mnist")


@pytest.mark.parametrize("name", SOURCES)
def test_a_failed_download_says_what_else_can_be_done(cache, address, monkeypatch, name):
    monkeypatch.setattr(SOURCES[name], "mirrors", [f"{address}/nowhere/"])
    with pytest.raises(TrlError, match=f"{name}: download failed .*set TRL_RAW_DATA to a folder") as error:
        load_dataset(name)
    assert "\n" not in str(error.value)


def test_the_real_mnist(real):
    dataset = load_dataset("mnist", real("mnist"))
    assert (dataset.train.images.shape, dataset.test.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert dataset.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert dataset.train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_the_real_fashion_mnist_of_the_publisher_or_of_debian(real):
    dataset = load_dataset("fashion_mnist", real("fashion_mnist", "fashion-mnist"))
    assert (dataset.train.images.shape, dataset.test.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert dataset.train.labels.bincount().tolist() == [6000] * 10
    assert dataset.classes[dataset.train.labels[0]] == "Ankle boot"
    assert dataset.train.images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-4)


def test_debians_fashion_mnist_is_the_publishers_without_name_and_time(real):
    """With both put back into the gzip headers, the archives have the md5 that torchvision lists."""
    folder = real("fashion-mnist") / "fashion-mnist"
    written = {"train": 1504176606, "t10k": 1504176627}  # seconds since 1970
    for file, md5 in FashionMNIST.resources:
        archive = (folder / file).read_bytes()
        if archive[3] != 0:
            pytest.skip("not Debian's packaging: the gzip header holds more than a time")
        name = file.removesuffix(".gz").encode() + b"\0"
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", written[file.split("-")[0]]) + archive[8:10] + name
        assert hashlib.md5(header + archive[10:]).hexdigest() == md5
        content = hashlib.sha256(gzip.decompress(archive)).hexdigest()
        assert content == mnist.FASHION_SHA256[file.removesuffix(".gz")]


@pytest.mark.parametrize(("change", "why"), [(half, "truncated"), (flip_byte, "damaged")])
def test_a_broken_real_archive(real, broken_copy, change, why):
    raw = broken_copy(real("mnist") / "mnist", "t10k-images-idx3-ubyte.gz", change)
    with pytest.raises(TrlError, match=f"t10k-images-idx3-ubyte.gz: {why}"):
        load_dataset("mnist", raw)
