"""What a command line names: a model in a folder, a file or a Python module; a data set by its name or in a file."""

import hashlib
import importlib
import operator
import os
import re
import sys
import traceback
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from trl.arrays import read_npz, read_safetensors
from trl.data import DATASETS, load_dataset
from trl.errors import TrlError, in_one_line
from trl.models import MODELS, Classifier, build_model, load_model
from trl.models.io import CONFIG, WEIGHTS

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "model_ema", "ema")
PREFIXES = ("_orig_mod.", "module.", "model.", "net.")  # of torch.compile, DataParallel, and wrappers of one model
ORDERED = (".pth", ".pt")  # torch.save keeps the order of the weights, safetensors does not


class Images(NamedTuple):
    """Images, uint8 or float in [0, 1], [n,…], their labels, integer [n], and the number of classes if it is known."""

    images: Tensor
    labels: Tensor
    classes: int | None


def parse_choice(text: str) -> tuple[str, dict[str, Any]]:
    """`name` or `name:option=value,…` as name and options; a list is written `[a, b]`. TrlError if it is neither."""
    name, _, rest = text.partition(":")
    try:
        options = yaml.safe_load("{" + rest.replace("=", ": ") + "}")
    except yaml.YAMLError:
        options = None
    named = isinstance(options, dict) and all(isinstance(key, str) for key in options)
    if not name or not named or len(options) != rest.count("="):
        raise TrlError(f"{text!r} is not understood; write NAME or NAME:option=value,option=value")
    return name, options


def open_images(source: str, samples: int | None = None) -> Images:
    """The first `samples` test images of the data set called `source`, or of a .safetensors or .npz file.

    Such a file holds `images` and `labels`. TrlError: no such data set or file, or one that is damaged.
    """
    path = Path(source)
    if path.suffix in (".safetensors", ".npz"):
        wanted = ("images", "labels")
        arrays = read_npz(path, wanted) if path.suffix == ".npz" else read_safetensors(path)
        missing = set(wanted) - arrays.keys()
        if missing:
            arrays = read_npz(path) if path.suffix == ".npz" else arrays
            held = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise TrlError(
                f"{path}: no {' and no '.join(sorted(missing))}; it holds {held or 'nothing'}: "
                "save the images [n,c,h,w] as images and the class numbers [n] as labels"
            )
        if arrays["images"].ndim == 3:
            raise TrlError(f"{path}: images {list(arrays['images'].shape)} have no channel; save images[:, None]")
        found = Images(arrays["images"], arrays["labels"], None)
    else:
        try:
            dataset = load_dataset(source)
        except TrlError as error:
            if source in DATASETS.names():
                raise
            raise TrlError(f"{error}; or a .safetensors or .npz file with images and labels") from None
        found = Images(dataset.test.images, dataset.test.labels, len(dataset.classes))
    return Images(found.images[:samples], found.labels[:samples], found.classes)


def open_model(source: str, architecture: str | None, shape: tuple[int, ...]) -> tuple[nn.Module, list[str]]:
    """The model that `source` names, in the modes it comes in, and what the user should know about how it was read.

    `source`: a folder written by `save_model`; a file of weights (.safetensors, .pt, .pth) for `architecture`, written
    as `parse_choice` reads it, on images of `shape`; or `package.module:name`, a module or a function that makes one.
    Weights are matched by name, else, in files that keep it, by order and shape. TrlError if that leads to no model.
    """
    path = Path(source)
    notes: list[str] = []
    if path.is_dir():
        model: nn.Module = load_model(path)
    elif path.suffix in (".safetensors", *ORDERED):
        model, notes = _from_weights(path, architecture, shape)
    elif re.fullmatch(r"[\w.]+:[\w.]+", source):
        model = _from_python(source)
    else:
        raise TrlError(
            f"no model {source!r}; give a folder with model.safetensors and config.json, "
            "a .safetensors, .pt or .pth file, or package.module:function"
        )
    return model, notes


def model_key(source: str, model: nn.Module) -> str:
    """A hash of what `open_model` made `model` of: a file, a folder's files, or Python files.

    These are all that are loaded from the folders where the function and the model's classes are written. What these
    read from elsewhere is not in it.
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


def _is_source(file: Path, folder: Path) -> bool:
    """Is it Python code below `folder`, but not of a package that is installed there?"""
    if file.suffix != ".py" or not file.is_relative_to(folder):
        return False
    return "site-packages" not in file.relative_to(folder).parts


def _from_weights(path: Path, architecture: str | None, shape: tuple[int, ...]) -> tuple[Classifier, list[str]]:
    weights = _read_torch(path) if path.suffix in ORDERED else read_safetensors(path)
    if not weights:
        raise TrlError(f"{path}: holds nothing")
    if architecture is None:
        raise TrlError(f"{path}: holds weights only; give --architecture, one of {', '.join(MODELS.names())}")
    name, options = parse_choice(architecture)
    MODELS.check(name, options)
    last = weights.get("head.bias", [*weights.values()][-1])  # one value for each class
    model = build_model(name, len(last) if last.ndim else 0, shape, **options)  # type: ignore[arg-type]  # it checks
    expected = model.state_dict()
    by_name = expected.keys() == weights.keys()
    if not by_name and path.suffix not in ORDERED:
        odd = sorted(expected.keys() ^ weights.keys())[0]
        raise TrlError(f"{path}: does not fit {name} at {odd!r}; a .safetensors file must have the names of {name}")
    chosen = {}
    for wanted, given in zip_longest(expected, expected if by_name else weights):
        there, here = (_shape(tensors.get(key)) for tensors, key in ((expected, wanted), (weights, given)))
        if there != here:
            raise TrlError(
                f"{path}: does not fit {architecture} for images {list(shape)}: "
                f"expected {wanted} {there}, found {given} {here}"
            )
        chosen[wanted] = weights[given]
        if not chosen[wanted].isfinite().all():
            raise TrlError(f"{path}: {given!r} holds NaN or infinite values")
    model.load_state_dict(chosen)
    return model.eval(), [] if by_name else [
        f"{path}: weights matched by order and shape, since their names are not {name}'s"
    ]


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
    except Exception as error:  # whatever the user's code raises: where it did is what helps
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = (
            f" ({last.filename}:{last.lineno})"
            if last.filename not in (__file__, "<frozen importlib._bootstrap>")
            else ""
        )
        raise TrlError(f"{source}: {in_one_line(error)}{where}") from None
    if not isinstance(model, nn.Module):
        raise TrlError(f"{source}: gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _read_torch(path: Path) -> dict[str, Tensor]:
    """A state dict; what checkpoints wrap it in, and prefixes that all its names share, are seen through."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a file of another kind can make the unpickler fail in any way
        if "weights_only" in str(error):
            raise TrlError(f"{path}: holds more than tensors, which is not loaded; save model.state_dict()") from None
        raise TrlError(f"{path}: damaged ({in_one_line(error)})") from None
    weights = _unwrapped(content)
    if weights is None:
        held = f"; it holds {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, Mapping) else ""
        raise TrlError(f"{path}: no state dict under {', '.join(WRAPPERS)}{held}; save model.state_dict()")
    return weights


def _unwrapped(content: object) -> dict[str, Tensor] | None:
    """The weights in a checkpoint: itself, or what it holds under the first of WRAPPERS that holds any."""
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(value, Tensor) for value in content.values()):
        names = [str(name) for name in content]
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in names):
                names = [name.removeprefix(prefix) for name in names]
        return dict(zip(names, content.values(), strict=True))
    return next((found for key in WRAPPERS if (found := _unwrapped(content.get(key))) is not None), None)


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(list(tensor.shape))
