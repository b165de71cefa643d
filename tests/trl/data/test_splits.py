import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.damage import flip_byte, half
from trl.common.errors import TrlError
from trl.data import Dataset, ImageSet, load_dataset, load_splits, save_splits, split


def numbered(counts, test=3):
    """A data set whose image i holds the number i, with counts[k] training images of class k, shuffled."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.arange(len(labels) + test, dtype=torch.int32).view(torch.uint8).view(-1, 1, 2, 2)
    train = ImageSet(images[: len(labels)], labels)
    return Dataset("toy", train, ImageSet(images[len(labels) :], labels[:test]), tuple(map(str, range(len(counts)))))


def numbers(images):
    return images.images.flatten(1).contiguous().view(torch.int32).flatten().tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=2, max_size=5), st.data())
def test_validation_images_are_training_images_held_out(counts, data):
    dataset = numbered(counts)
    validation = data.draw(st.integers(len(counts), len(dataset.train) - len(counts)))
    splits = split(dataset, validation, data.draw(st.integers(0, 2**32 - 1)))
    assert len(splits.validation) == validation
    assert sorted(numbers(splits.train) + numbers(splits.validation)) == list(range(len(dataset.train)))
    assert numbers(splits.test) == numbers(dataset.test)
    for part in (splits.train, splits.validation):
        assert torch.equal(part.labels, dataset.train.labels[torch.tensor(numbers(part))])
    share = torch.tensor(counts) * validation / len(dataset.train)
    assert (splits.validation.labels.bincount(minlength=len(counts)) - share).abs().max() <= 1  # stratified


def test_the_seed_decides():
    dataset = numbered([30, 20])
    assert numbers(split(dataset, 10, 0).validation) == numbers(split(dataset, 10, 0).validation)
    assert numbers(split(dataset, 10, 0).validation) != numbers(split(dataset, 10, 1).validation)


@pytest.mark.parametrize("validation", [50, 60])
def test_too_many_validation_images(validation):
    with pytest.raises(
        TrlError, match=rf"recipes.<recipe>.data.validation is {validation}, but toy has 50 training images"
    ):
        split(numbered([30, 20]), validation, 0)


@pytest.mark.parametrize("validation", [0, 1, 49])
def test_every_class_needs_an_image_on_either_side(validation):
    with pytest.raises(TrlError, match=rf"data.validation is {validation}; with the 2 classes of toy, give 2 to 48"):
        split(numbered([30, 20]), validation, 0)


def test_a_class_with_a_single_image_cannot_be_divided():
    with pytest.raises(TrlError, match=r"toy: .*only 1") as error:
        split(numbered([30, 1]), 10, 0)
    assert "\n" not in str(error.value)


def test_the_training_images_can_be_limited():
    dataset = numbered([60, 40])
    whole, few = split(dataset, 10, 0), split(dataset, 10, 0, 30)
    assert numbers(few.validation) == numbers(whole.validation)
    assert set(numbers(few.train)) < set(numbers(whole.train))
    assert few.train.labels.bincount().tolist() == [18, 12]
    assert torch.equal(few.train.labels, dataset.train.labels[torch.tensor(numbers(few.train))])
    assert numbers(few.train) == numbers(split(dataset, 10, 0, 30).train) != numbers(split(dataset, 10, 1, 30).train)
    assert split(dataset, 10, 0, 90).sha256 == whole.sha256 != few.sha256


@pytest.mark.parametrize("train", [1, 89, 91])
def test_too_few_or_too_many_training_images(train):
    with pytest.raises(TrlError, match=rf"data.train is {train}; of toy's images 90 are left .*: give 2 to 88, or 90"):
        split(numbered([60, 40]), 10, 0, train)


def test_the_hash_tells_content_apart():
    dataset = numbered([30, 20])
    hashes = {split(dataset, 10, 0).sha256, split(dataset, 10, 1).sha256, split(dataset, 11, 0).sha256}
    images, labels = dataset.test.images.clone(), dataset.test.labels.clone()
    images[0, 0, 0, 0] ^= 1
    labels[0] ^= 1
    for test in (ImageSet(images, dataset.test.labels), ImageSet(dataset.test.images, labels)):
        hashes.add(split(Dataset("toy", dataset.train, test, dataset.classes), 10, 0).sha256)
    assert len(hashes) == 5


def test_round_trip(tmp_path):
    splits = split(load_dataset("digits"), 150, 0)
    save_splits(splits, tmp_path / "data")
    loaded = load_splits(tmp_path / "data")
    assert (loaded.name, loaded.classes, loaded.sha256) == (splits.name, splits.classes, splits.sha256)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(loaded, part).images, getattr(splits, part).images)
        assert torch.equal(getattr(loaded, part).labels, getattr(splits, part).labels)
    description = json.loads((tmp_path / "data" / "data.json").read_text())
    assert description["sizes"] == {"train": 1197, "validation": 150, "test": 450}


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        save_splits(split(load_dataset("digits"), 150, 0), tmp_path / folder)
    for file in ("data.safetensors", "data.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("file", ["data.safetensors", "data.json"])
@pytest.mark.parametrize("change", [half, flip_byte, lambda content: b""])
def test_damage_is_noticed(tmp_path, file, change):
    save_splits(split(numbered([300, 200]), 100, 0), tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    if file == "data.json":  # the middle is a size, which nothing depends on: damage the hash instead
        content = content[content.index(b"sha256") :]
    path.write_bytes(change(content))
    with pytest.raises(TrlError, match=f"{tmp_path}/data.*damaged.*prepare the data again") as error:
        load_splits(tmp_path)
    assert "\n" not in str(error.value)


def test_another_hash_in_the_description_is_noticed(tmp_path):
    save_splits(split(numbered([30, 20]), 10, 0), tmp_path)
    description = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps({**description, "sha256": "0" * 64}))
    with pytest.raises(TrlError, match=r"sha256 of its arrays is [0-9a-f]{64}, but data.json has 0{64}"):
        load_splits(tmp_path)


@pytest.mark.parametrize("file", ["data.safetensors", "data.json"])
def test_a_missing_file_is_named(tmp_path, file):
    save_splits(split(numbered([30, 20]), 10, 0), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(TrlError, match=f"{tmp_path / file} is missing; prepare the data again"):
        load_splits(tmp_path)
