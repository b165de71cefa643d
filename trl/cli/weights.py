"""Weights in files of other programs: find them in a checkpoint, and match them to one of our models."""

import re
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl.common.arrays import read_safetensors
from trl.common.errors import TrlError, in_one_line

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin", ".th", ".pt2")

# usual keys of a model in a checkpoint, the first one found wins; moving averages come last
USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "classifier", "weights")
AVERAGE = re.compile("(^|_)(ema|swa)(_|$)|averag")
OTHER = re.compile("optim(?!al)|sched|scaler")  # states other than model weights
COUNTERS = ("num_batches_tracked", "n_averaged")  # evaluation does not depend on them
WRAPPERS = ("module", "_orig_mod")  # added by DataParallel and torch.compile, at any depth
CONSTANT = re.compile(r"(?!running_)(?:\w+_)?(?:(means?|mu)|(stds?|sds?|sigma))")  # of a normalisation: mean or std
DEPTH = 4  # nested mappings to search

# types saved along with weights that hold only numbers and text
_BESIDE: list[Any] = [
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}),
    Namespace,
]


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file by name, in the file's order if it has one, and notes for the user.

    They may be nested in mappings, under `USUAL` keys or as the only weights. `WRAPPERS` are removed from names; a
    weight with two names keeps the first. TrlError if the file cannot be read, holds no weights, or is ambiguous.
    """
    notes: list[str] = []
    if path.suffix == ".safetensors":
        found = read_safetensors(path)
    else:
        content = _load(path)
        candidates = dict(_state_dicts(content))
        if not candidates:
            held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise TrlError(f"{path}: no state dict; it holds {held or 'nothing'}; save model.state_dict()")
        keys, notes = _choose(path, [*candidates])
        found = candidates[keys]
    found = _unwrapped(_without_copies(found))
    if not found:
        raise TrlError(f"{path}: holds nothing")
    return found, notes


def normalisation(weights: Mapping[str, Tensor], channels: int) -> dict[str, tuple[str, list[float]]]:
    """Normalisation constants among `weights`: name → "mean" or "std", and one value per channel."""
    found = {}
    for name, tensor in weights.items():
        constant = CONSTANT.fullmatch(name.rpartition(".")[2])
        if constant and tensor.is_floating_point() and tensor.numel() in (1, channels):
            values = [round(value, 6) for value in tensor.flatten().tolist()]
            found[name] = ("mean" if constant[1] else "std", values * (channels // len(values)))
    return found


def fit(
    path: Path, model: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """`weights` of the file `path` with the names and dtypes of `expected`, a state dict of `model`, and notes.

    They are matched by name, after a common prefix; if the names differ, by order and shape in files that keep the
    order. TrlError if weights are missing, left over, of another shape, or not finite.
    """
    names, notes = _match(path, model, expected, weights)
    chosen = {}
    for wanted, given in names:
        there, here = (_shape(tensors.get(key)) for tensors, key in ((expected, wanted), (weights, given)))
        if there != here:
            raise TrlError(f"{path}: does not match {model}: expected {wanted} {there}, found {given} {here}")
        tensor, kind = weights[given], expected[wanted].dtype
        dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        counts = wanted.endswith(COUNTERS)  # counters may have been converted along with the weights
        if not dense or (tensor.is_floating_point() != kind.is_floating_point and not counts):
            raise TrlError(f"{path}: {given!r} is {_type(tensor)}; save dense {str(kind).removeprefix('torch.')}")
        chosen[wanted] = tensor.to(kind)
        if not chosen[wanted].isfinite().all():
            raise TrlError(f"{path}: {given!r} holds NaN or infinite values")
    types = {_type(weights[given]) for wanted, given in names if weights[given].dtype != expected[wanted].dtype}
    if types := types - {"int32"}:
        notes.append(f"{path}: weights are {', '.join(sorted(types))}, used as float32")
    return {**expected, **chosen}, notes


def _match(
    path: Path, model: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[list[tuple[Any, Any]], list[str]]:
    """Pairs of an expected name and the given name that matches it."""
    counted = any(name.endswith(COUNTERS[0]) for name in weights)  # PyTorch 0.3 had no counters
    wanted = [name for name in expected if counted or not name.endswith(COUNTERS)]
    prefixes = Counter(
        given.removesuffix(name) for given in weights for name in wanted if f".{given}".endswith(f".{name}")
    )
    whole = [prefix for prefix in prefixes if all(prefix + name in weights for name in wanted)]
    if whole:
        keys, notes = _choose(path, [tuple(prefix.split(".")[:-1]) for prefix in whole])
        best = "".join(f"{key}." for key in keys)
    else:
        notes = []
        best, count = max(prefixes.items(), key=lambda item: item[1], default=("", 0))
        if 2 * count <= len(wanted):  # the names are different
            return _by_order(path, model, wanted, weights)
    known = {prefix + name for prefix in whole or [best] for name in wanted}
    missing = [name for name in wanted if best + name not in weights]
    left = [name for name in weights if name not in known and not name.endswith(COUNTERS)]
    if missing or left:
        what = [f"{word} {_few(names)}" for word, names in (("missing", missing), ("left over", left)) if names]
        raise TrlError(f"{path}: does not match {model}: {'; '.join(what)}; give its options, or save only its weights")
    return [(name, best + name) for name in wanted], notes


def _by_order(
    path: Path, model: str, wanted: Sequence[str], weights: Mapping[str, Tensor]
) -> tuple[list[tuple[Any, Any]], list[str]]:
    if path.suffix == ".safetensors":  # not in order
        odd = sorted(set(wanted) ^ weights.keys())[0]
        raise TrlError(f"{path}: does not match {model} at {odd!r}; a .safetensors file must use the model's names")
    counted = any(name.endswith(COUNTERS) for name in wanted)
    given = [name for name in weights if not name.endswith(COUNTERS if not counted else COUNTERS[1:])]
    note = f"{path}: weights matched by order and shape, since their names are not the architecture's"
    return [*zip_longest(wanted, given)], [note]


def _load(path: Path) -> Any:
    """What torch.save wrote; TrlError for programs and anything else that could execute code."""
    try:
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        program = {"/constants.pkl": "torch.jit.load", "/models/model.json": "torch.export.load"}
        for end, load in program.items():
            if any(name.endswith(end) for name in names):
                call = f"{load}({path.name!r})" + (".module()" if "export" in load else "")
                raise TrlError(
                    f"{path}: a program, not weights; give --model package.module:function, "
                    f"your own function that returns {call}"
                )
        with torch.serialization.safe_globals(_BESIDE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except TrlError:
        raise
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except Exception as error:  # another kind of file can make the unpickler fail in any way
        if "weights_only" in str(error):
            kind = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f" ({kind[1]})" if kind else ""
            raise TrlError(
                f"{path}: holds unsafe objects{what}, which are not loaded; save model.state_dict()"
            ) from None
        raise TrlError(f"{path}: damaged ({in_one_line(error)}); save model.state_dict() again") from None


def _state_dicts(content: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Innermost mappings that hold a matrix, with the path of keys to each."""
    if not isinstance(content, Mapping) or len(keys) > DEPTH:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    inside = [
        found
        for key, value in named.items()
        if not OTHER.search(key.lower())
        for found in _state_dicts(value, (*keys, key))
    ]
    yield from inside
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if not inside and any(tensor.ndim > 1 for tensor in tensors.values()):
        yield keys, tensors


def _choose(path: Path, candidates: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[str]]:
    """Choose among several models in a file by their paths of keys; a note if there is more than one."""

    def rank(keys: tuple[str, ...]) -> list[int]:
        others = len(USUAL)
        return [USUAL.index(k) if k in USUAL else others + bool(AVERAGE.search(k.lower())) for k in keys]

    first, *rest = sorted(candidates, key=rank)
    if not rest:
        return first, []
    if rank(first) == rank(rest[0]):
        both = ", ".join(repr(".".join(keys)) for keys in (first, *rest))
        raise TrlError(f"{path}: holds several models ({both}); save only the state dict to evaluate")
    taken, left = repr(".".join(first)), _few([".".join(keys) for keys in rest])
    why = "usual keys come first, averages last"
    return first, [f"{path}: using the weights under {taken}, not under {left} ({why}); to use those, save only them"]


def _without_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first name: some wrappers save the model that they hold twice."""
    found: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in weights.items():
        where = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.layout == torch.strided else None
        found.setdefault(where if where and where[0] else name, (name, tensor))
    return dict(found.values())


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in weights]
    return dict(zip(names if len({*names}) == len(names) else weights, weights.values(), strict=True))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(list(tensor.shape))
