import subprocess
import sys

import pytest
import torch

from trl.common.errors import TrlError
from trl.data import DATASETS, Dataset, ImageSet, load_dataset

IMAGES, LABELS = torch.zeros(4, 1, 2, 3, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])


def test_image_set_knows_its_size_and_shape():
    images = ImageSet(IMAGES, LABELS)
    assert len(images) == 4
    assert images.shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "images must be uint8 .*float32"),
        (IMAGES[:, 0], LABELS, r"images must be uint8 .*\[4, 2, 3\]"),
        (IMAGES, LABELS.int(), "labels must be int64 .*int32"),
        (IMAGES, LABELS[:, None], r"labels must be int64 .*\[4, 1\]"),
        (IMAGES[:3], LABELS, "3 images have 4 labels"),
        (IMAGES, LABELS - 2, "one is -2"),
    ],
)
def test_image_set_refuses(images, labels, message):
    with pytest.raises(TrlError, match=message) as error:
        ImageSet(images, labels)
    assert "\n" not in str(error.value)


def test_data_set_refuses_labels_without_a_class_name():
    with pytest.raises(TrlError, match="label 1, but only 1 classes"):
        Dataset("toy", ImageSet(IMAGES, LABELS * 0), ImageSet(IMAGES, LABELS), ("a",))


def test_data_set_refuses_unlike_parts():
    with pytest.raises(TrlError, match=r"\(1, 2, 3\), but test images \(1, 2, 2\)"):
        Dataset("toy", ImageSet(IMAGES, LABELS), ImageSet(IMAGES[..., :2], LABELS), ("a", "b"))


def test_unknown_data_set():
    with pytest.raises(TrlError, match="unknown data set 'minst'; known: cifar10, digits"):
        load_dataset("minst")


def test_every_registered_data_set_can_be_imported():
    assert DATASETS.names() == ["cifar10", "digits", "fashion_mnist", "image_folder", "mnist", "tiny_imagenet"]
    for name in DATASETS.names():
        assert DATASETS.get(name).__name__ == name


def test_importing_the_package_stays_light():
    heavy = "import trl.data, sys; print(sorted({'torchvision', 'sklearn', 'scipy', 'PIL'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
