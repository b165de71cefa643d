import torch
from sklearn.datasets import load_digits

from trl.data import load_dataset


def test_digits_are_scikit_learns_divided_in_two():
    digits = load_dataset("digits")
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    assert digits.train.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    ours = {
        (*image.flatten().tolist(), label)
        for part in (digits.train, digits.test)
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    }
    bunch = load_digits()
    assert len(ours) == 1797  # no image of the training set is in the test set
    pixels = torch.tensor(bunch.data).mul(255 / 16).round().int().tolist()
    assert ours == {(*row, label) for row, label in zip(pixels, bunch.target.tolist(), strict=True)}
    assert digits.train.images.max() == 255


def test_the_test_images_are_stratified_and_always_the_same():
    first, second = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(first.test.images, second.test.images)
    share = first.test.labels.bincount() / (first.test.labels.bincount() + first.train.labels.bincount())
    assert (share - 450 / 1797).abs().max() < 0.006


def test_digits_need_no_raw_folder(tmp_path):
    assert len(load_dataset("digits", tmp_path / "nowhere").test) == 450
