import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl.common.errors import TrlError
from trl.data import ImageSet, ShuffledStream, TrainingData

SIZES = st.integers(1, 60).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


def epoch(stream, number):
    return torch.cat([stream.indices(number * stream.per_epoch + i) for i in range(stream.per_epoch)])


@given(SIZES, st.integers(0, 2**63), st.integers(0, 1000))
def test_an_epoch_shows_no_image_twice(sizes, seed, number):
    length, batch_size = sizes
    stream = ShuffledStream(length, batch_size, seed)
    assert stream.per_epoch == length // batch_size
    assert stream.indices(number).shape == (batch_size,)
    assert stream.indices(number).dtype == torch.int64
    seen = epoch(stream, number).tolist()
    assert len(set(seen)) == len(seen) == length // batch_size * batch_size
    assert set(seen) <= set(range(length))
    if length % batch_size == 0:
        assert sorted(seen) == list(range(length))


@given(SIZES, st.integers(0, 100), st.lists(st.integers(0, 200), min_size=1, max_size=10))
def test_a_batch_depends_on_its_step_alone(sizes, seed, steps):
    stream = ShuffledStream(*sizes, seed)
    for step in steps:  # in any order, with what was cached before
        assert torch.equal(stream.indices(step), ShuffledStream(*sizes, seed).indices(step))


@given(st.integers(30, 100), st.integers(0, 100), st.integers(0, 100))
def test_epochs_and_seeds_differ(length, seed, number):
    stream = ShuffledStream(length, 10, seed)
    assert not torch.equal(epoch(stream, number), epoch(stream, number + 1))
    # one seed's second epoch is not another's first: seed and epoch are not merely added
    assert not torch.equal(epoch(stream, number + 1), epoch(ShuffledStream(length, 10, seed + 1), number))
    assert not torch.equal(epoch(stream, number), epoch(ShuffledStream(length, 10, seed + 1), number))


def test_every_image_comes_up_in_time_although_partial_batches_are_dropped():
    stream = ShuffledStream(11, 4, seed=0)
    assert set(torch.cat([epoch(stream, i) for i in range(10)]).tolist()) == set(range(11))


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_must_fit(batch_size):
    with pytest.raises(TrlError, match=f"batch_size is {batch_size}, but there are 10 training images"):
        ShuffledStream(10, batch_size, 0)


def image_set(labels, c=3):
    """Image i is all i."""
    labels = torch.as_tensor(labels)
    return ImageSet(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, c, 4, 4), labels)


def test_take_gives_scaled_images_and_their_labels():
    data = TrainingData(image_set([3, 1, 2, 0]), "cpu")
    x, y = data.take(torch.tensor([2, 2, 0]))
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.tensor([2, 2, 0]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255)
    assert y.tolist() == [2, 2, 3]
    assert data.images.dtype == torch.uint8


@pytest.mark.parametrize("options", [{"crop": 2}, {"flip": True}, {"saturation": 0.5}])
def test_take_augments_and_leaves_the_stored_images_alone(options):
    images = ImageSet(torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    data = TrainingData(images, "cpu", **options)
    indices = torch.arange(8)
    torch.manual_seed(0)
    first, second = data.take(indices)[0], data.take(indices)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(data.take(indices)[0], first)
    assert torch.equal(data.images, images.images)
    assert first.min() >= 0
    assert first.max() <= 1


def test_streamed_images_are_the_resident_ones_announced_or_not():
    images = ImageSet(torch.randint(256, (40, 3, 6, 6), dtype=torch.uint8), torch.arange(40) % 4)
    options = {"crop": 1, "flip": True, "saturation": 0.3}
    resident, streamed = (TrainingData(images, "cpu", **options, stream=stream) for stream in (False, True))
    batches = [torch.randperm(40)[:8] for _ in range(6)]
    for step in (0, 3, 4, 1, 2):  # announced late, early, twice and never taken
        streamed.ahead(batches[step])
    streamed.ahead(batches[4])
    for indices in [*batches[:5], torch.arange(40)]:
        taken = []
        for data in (resident, streamed):
            torch.manual_seed(0)
            taken.append(data.take(indices))
        assert torch.equal(taken[0][0], taken[1][0])
        assert torch.equal(taken[0][1], taken[1][1])


def test_announced_images_are_read_beside_the_training():
    readers = set()

    class Watched(torch.Tensor):
        def __getitem__(self, indices):
            readers.add(threading.current_thread().name.partition("_")[0])
            return torch.Tensor.__getitem__(self, indices)

    data = TrainingData(image_set([0, 1, 2, 3]), "cpu", stream=True)
    data._reader._images = data.images.as_subclass(Watched)
    data.ahead(torch.tensor([1, 2]))
    data.take(torch.tensor([1, 2]))
    assert readers == {"read ahead"}
    data.take(torch.tensor([3]))
    assert readers == {"read ahead", "MainThread"}


def test_saturation_needs_colours():
    with pytest.raises(TrlError, match="saturation needs RGB images, these have 1 channel"):
        TrainingData(image_set([0, 1], c=1), "cpu", saturation=0.5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 2**32))
def test_same_class_is_another_image_of_the_class(labels, seed):
    labels = torch.tensor(labels)
    data = TrainingData(image_set(labels), "cpu")
    torch.manual_seed(seed)
    indices = torch.randint(len(labels), (100,))
    partners = data.same_class(indices)
    assert torch.equal(labels[partners], labels[indices])
    alone = labels.bincount()[labels[indices]] == 1
    assert torch.equal(partners == indices, alone)


def test_same_class_reaches_every_other_image_equally_often():
    labels = torch.tensor([2, 0, 2, 2, 0, 2, 5, 2])
    data = TrainingData(image_set(labels), "cpu")
    torch.manual_seed(0)
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i] or [i]
        counts = data.same_class(torch.full((4000,), i)).bincount(minlength=len(labels))
        assert counts.nonzero().flatten().tolist() == others
        assert (counts[others] / 4000 - 1 / len(others)).abs().max() < 0.04  # 5 standard deviations
