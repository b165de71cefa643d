"""Open what a command line names: a model in a folder, file or Python module; a data set by name or in a file."""

import hashlib
import importlib
import operator
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from trl.cli.weights import SUFFIXES, fit, normalisation, read_weights
from trl.common.arrays import read_named
from trl.common.errors import TrlError, in_one_line, origin
from trl.data import DATASETS, load_dataset
from trl.models import MODELS, Classifier, build_model, load_model
from trl.models.io import CONFIG, WEIGHTS


class Images(NamedTuple):
    """Images, uint8 or float in [0, 1], [n,…], labels, integer [n], and the number of classes if known."""

    images: Tensor
    labels: Tensor
    classes: int | None


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """Parse `name` or `name:option=value,…`; lists are written `[a, b]`. TrlError for anything else."""
    name, _, rest = text.partition(":")
    try:
        options = yaml.safe_load("{" + rest.replace("=", ": ") + "}")
    except yaml.YAMLError:
        options = None
    named = isinstance(options, dict) and all(isinstance(key, str) for key in options)
    if not name or not named or len(options) != rest.count("="):
        raise TrlError(f"cannot parse {text!r}; write NAME or NAME:option=value,option=value")
    return name, options


def open_images(source: str, samples: int | None = None) -> Images:
    """The first `samples` test images of a data set, or of a .safetensors or .npz file.

    A data set is given as for `parse_choice`. A file holds `images`, channels first, and `labels`: class numbers of any
    type [n] or [n, 1], or one-hot rows [n, classes]. TrlError: the data set or file is unknown or damaged, or its
    images or labels have another shape.
    """
    path = Path(source)
    if path.suffix in (".safetensors", ".npz"):
        images, labels = read_named(path, ("images", "labels"))
        found = Images(_channels_first(path, images), _class_numbers(path, labels), None)
    else:
        name, options = parse_choice(source)
        try:
            dataset = load_dataset(name, **options)
        except TrlError as error:
            if name in DATASETS.names():
                raise
            raise TrlError(f"{error}; or give a .safetensors or .npz file with images and labels") from None
        found = Images(dataset.test.images, dataset.test.labels, len(dataset.classes))
    return Images(found.images[:samples], found.labels[:samples], found.classes)


def open_model(source: str, architecture: str | None, shape: tuple[int, ...]) -> tuple[nn.Module, list[str]]:
    """The model that `source` names, and notes for the user about how it was read.

    `source`: a folder written by `save_model`; a weights file (`SUFFIXES`) for `architecture`, given as for
    `parse_choice`, with images of `shape`; or `package.module:name`, a module or a function that returns one. Weights
    are matched by name, or by order and shape in files that keep the order. Models from folders and files are in eval
    mode, Python models in the mode they were given. TrlError if there is no such model.
    """
    path = Path(source)
    if path.is_dir():
        return load_model(path), []
    if path.suffix in SUFFIXES:
        return _from_weights(path, architecture, shape)
    if re.fullmatch(r"[\w.]+:[\w.]+", source):
        return _from_python(source), []
    raise TrlError(
        f"no model {source!r}; give a folder with model.safetensors and config.json, "
        f"a weights file ({', '.join(SUFFIXES)}), or package.module:function"
    )


def model_key(source: str, model: nn.Module) -> str:
    """A hash of the files that `open_model` made `model` from: a file, a folder's files, or Python files.

    For Python models these are all loaded files in the folders that define the function and the model's classes.
    Anything that they read from elsewhere is not covered.
    """
    path = Path(source)
    if path.exists():
        files = [path] if path.is_file() else [path / CONFIG, path / WEIGHTS]
    else:
        module, attribute = source.split(":")
        owners = {module, getattr(operator.attrgetter(attribute)(sys.modules[module]), "__module__", module)}
        owners |= {type(part).__module__ for part in model.modules()}
        loaded = {name: Path(file) for name, m in [*sys.modules.items()] if (file := getattr(m, "__file__", None))}
        folders = {loaded[owner].parent for owner in owners if owner in loaded}
        files = [file for file in {*loaded.values()} if any(_is_source(file, folder) for folder in folders)]
    found = hashlib.blake2b(digest_size=12)
    for file in sorted(files):
        content = file.read_bytes()
        found.update(f"{file.name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _channels_first(path: Path, images: Tensor) -> Tensor:
    few = (1, 3, 4)  # usual numbers of channels
    if images.ndim == 3:
        fix = "have no channel dimension; save images[:, None]"
    elif images.ndim == 4 and images.shape[3] in few and images.shape[1] not in few:
        fix = "have their channels last; save images.transpose(0, 3, 1, 2)"
    else:
        return images
    raise TrlError(f"{path}: images {list(images.shape)} {fix}, which is [n, channels, height, width]")


def _class_numbers(path: Path, labels: Tensor) -> Tensor:
    """Labels as integers [n]; TrlError unless they give one class per image."""
    numbers = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if numbers.ndim == 2 and bool(((numbers == 0) | (numbers == 1)).all() and (numbers.sum(1) == 1).all()):
        return numbers.to(torch.int8).argmax(1)
    if numbers.ndim != 1:
        raise TrlError(
            f"{path}: labels {list(labels.shape)}: give one class number per image, such as labels.argmax(1)"
        )
    if numbers.is_floating_point() and bool((numbers == numbers.round()).all()):
        return numbers.long()
    return numbers


def _is_source(file: Path, folder: Path) -> bool:
    """Whether `file` is Python code below `folder`, but not in a package installed there."""
    if file.suffix != ".py" or not file.is_relative_to(folder):
        return False
    return "site-packages" not in file.relative_to(folder).parts


def _from_weights(path: Path, architecture: str | None, shape: tuple[int, ...]) -> tuple[Classifier, list[str]]:
    weights, notes = read_weights(path)
    if architecture is None:
        raise TrlError(f"{path}: holds only weights; give --architecture, one of {', '.join(MODELS.names())}")
    name, options = parse_choice(architecture)
    MODELS.check(name, options)
    constants = normalisation(weights, shape[0])
    notes += _normalised(path, constants, architecture, bool(options.get("mean")))
    weights = {key: tensor for key, tensor in weights.items() if key not in constants}
    head = [tensor for key, tensor in weights.items() if f".{key}".endswith(".head.bias")]
    last = [*head, *reversed(weights.values())][:1]  # one value for each class
    model = build_model(name, len(last[0]) if last and last[0].ndim else 0, shape, **options)  # type: ignore[arg-type]
    chosen, said = fit(path, f"{architecture} for images {list(shape)}", model.state_dict(), weights)
    model.load_state_dict(chosen)
    return model.eval(), [*notes, *said]


def _normalised(path: Path, constants: dict[str, tuple[str, list[float]]], architecture: str, given: bool) -> list[str]:
    """Notes on normalisation constants in a weights file; TrlError if they matter and are not `given` as options."""
    held = ", ".join(f"{name}={values}" for name, (_, values) in constants.items())
    if given and constants:
        return [f"{path}: ignored its {held}; normalisation is that of {architecture}"]
    if any(value != (kind == "std") for kind, values in constants.values() for value in values):
        found = dict(constants.values())
        mean, std = found.get("mean", "[…]"), found.get("std", "[…]")
        options = f"{architecture}{',' if ':' in architecture else ':'}mean={mean},std={std}"
        raise TrlError(
            f"{path}: images are normalised by {held}; give this for images in [0, 1]: --architecture '{options}'"
        )
    return []


def _from_python(source: str) -> nn.Module:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, attribute = source.split(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        model = found if isinstance(found, nn.Module) else found()
    except TrlError:
        raise
    except (Exception, SystemExit) as error:  # from the user's code: report where it was raised
        where = origin(error)
        ours = where.startswith((__file__, "<frozen importlib._bootstrap>"))
        raise TrlError(f"{source}: {in_one_line(error)}{'' if ours else f' ({where})'}") from None
    if not isinstance(model, nn.Module):
        raise TrlError(f"{source}: returns a {type(model).__name__}, not a torch.nn.Module")
    return model
