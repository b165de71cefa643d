"""Prepared data, as later stages read it: training, validation and test images with a hash of their content."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.files import write_atomic, write_json
from trl.data.base import Dataset, ImageSet

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set with validation images held out of the training images; `sha256` hashes all six arrays."""

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    sha256: str


class _Description(BaseModel):
    """data.json."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sizes: dict[str, int]
    sha256: str


def split(dataset: Dataset, validation: int, seed: int, train: int | None = None) -> Splits:
    """Hold out `validation` training images, stratified by class, chosen by `seed`; TrlError if that is impossible.

    Of the others `train` are kept (default: all), stratified and chosen likewise.
    """
    from sklearn.model_selection import train_test_split

    key, total = "recipes.<recipe>.data.validation", len(dataset.train)
    labels = dataset.train.labels.numpy()
    least = len(np.unique(labels))  # both sides need an image of every class
    if validation >= total:
        raise TrlError(f"{key} is {validation}, but {dataset.name} has {total} training images; hold out fewer")
    if not least <= validation <= total - least:
        raise TrlError(
            f"{key} is {validation}; with the {least} classes of {dataset.name}, give {least} to {total - least}"
        )
    try:
        parts = train_test_split(np.arange(total), test_size=validation, stratify=labels, random_state=seed)
    except ValueError as error:  # a class with a single image
        raise TrlError(f"{dataset.name}: cannot hold out {key} images: {' '.join(str(error).split())}") from None
    if train is not None:
        left = len(parts[0])
        if not (least <= train <= left - least or train == left):
            why = f"{left} are left after validation: give {least} to {left - least}, or {left}"
            raise TrlError(f"recipes.<recipe>.data.train is {train}; of {dataset.name}'s images {why}")
        if train < left:
            try:
                parts[0], _ = train_test_split(parts[0], train_size=train, stratify=labels[parts[0]], random_state=seed)
            except ValueError as error:  # a class of which a single image is left
                why = " ".join(str(error).split())
                raise TrlError(f"{dataset.name}: cannot keep recipes.<recipe>.data.train images: {why}") from None
    kept, held_out = (_take(dataset.train, np.sort(part)) for part in parts)
    tensors = _tensors(kept, held_out, dataset.test)
    return Splits(dataset.name, kept, held_out, dataset.test, dataset.classes, _sha256(tensors))


def save_splits(splits: Splits, folder: Path) -> None:
    """Write data.safetensors and data.json into `folder`. The same splits give the same bytes."""
    tensors = _tensors(splits.train, splits.validation, splits.test)
    write_atomic(folder / "data.safetensors", save(tensors))
    description = _Description(
        name=splits.name,
        classes=splits.classes,
        shape=splits.train.shape,
        sizes={part: len(getattr(splits, part)) for part in PARTS},
        sha256=splits.sha256,
    )
    write_json(folder / "data.json", description.model_dump())


def load_splits(folder: Path) -> Splits:
    """Read what `save_splits` wrote; TrlError if a file is missing or damaged."""
    again = "prepare the data again"
    for file in (folder / "data.json", folder / "data.safetensors"):
        if not file.is_file():
            raise TrlError(f"{file} is missing; {again}")
    try:
        description = _Description.model_validate_json((folder / "data.json").read_bytes())
    except ValidationError:
        raise TrlError(f"{folder / 'data.json'} is damaged; {again}") from None
    try:
        tensors = load_file(folder / "data.safetensors")
    except SafetensorError as error:
        raise TrlError(f"{folder / 'data.safetensors'} is damaged ({error}); {again}") from None
    actual = _sha256(tensors)
    if actual != description.sha256:
        raise TrlError(
            f"{folder / 'data.safetensors'} is damaged: the sha256 of its arrays is {actual}, but data.json has "
            f"{description.sha256}; {again}"
        )
    train, validation, test = (ImageSet(tensors[f"{part}.images"], tensors[f"{part}.labels"]) for part in PARTS)
    return Splits(description.name, train, validation, test, description.classes, description.sha256)


def _take(images: ImageSet, chosen: np.ndarray) -> ImageSet:
    indices = torch.from_numpy(chosen)
    return ImageSet(images.images[indices], images.labels[indices])


def _tensors(*parts: ImageSet) -> dict[str, Tensor]:
    named = zip(PARTS, parts, strict=True)
    return {f"{n}.{k}": getattr(part, k).contiguous() for n, part in named for k in ("images", "labels")}


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
