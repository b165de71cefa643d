"""scikit-learn's handwritten digits (UCI, test part of optdigits): 1,797 grey images of 8×8. No download needed."""

from pathlib import Path

import numpy as np
import torch

from trl.data.base import Dataset, ImageSet

TEST_IMAGES = 450


def digits(raw: Path | None) -> Dataset:
    """1,347 training and 450 test images, a fixed stratified split. `raw` is ignored."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)  # 0..16 → 0..255
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    parts = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, stratify=bunch.target, random_state=0)
    train, test = (ImageSet(images[part], labels[part]) for part in parts)
    return Dataset("digits", train, test, tuple(str(name) for name in bunch.target_names))
