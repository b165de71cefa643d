"""Read arrays from files of other programs, and hash arrays. Nothing is ever unpickled."""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trl.common.errors import TrlError, in_one_line


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name; TrlError if it cannot be read or is damaged."""
    with _readable(path, "damaged"):
        return load_file(path)


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a file by name; TrlError if it cannot be read or is damaged."""
    with _opened_npz(path) as file:
        return {name: _tensor(file[name]) for name in file.files}


def read_npy(path: Path) -> Tensor:
    """The array of a file; TrlError if it cannot be read or is damaged."""
    with _readable(path, "not a .npy file of numbers, or damaged"):
        return _tensor(np.load(path, allow_pickle=False))


def read_named(path: Path, names: Sequence[str]) -> list[Tensor]:
    """The arrays called `names` in a .npz or .safetensors file; TrlError if one is missing or the file is damaged."""
    if path.suffix == ".npz":
        with _opened_npz(path) as file:
            if all(name in file.files for name in names):
                return [_tensor(file[name]) for name in names]
            held = [_describe(file, name) for name in file.files]
    else:
        found = read_safetensors(path)
        if found.keys() >= set(names):
            return [found[name] for name in names]
        held = [f"{name} {list(tensor.shape)}" for name, tensor in found.items()]
    missing = [name for name in names if name not in {text.split(" ")[0] for text in held}]
    wanted = ", ".join(f"{name}=…" for name in names)
    save = f"numpy.savez(FILE, {wanted})" if path.suffix == ".npz" else f"these names ({wanted})"
    raise TrlError(
        f"{path}: no {' and no '.join(missing)}; it holds {', '.join(held) or 'nothing'}; save it again with {save}"
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the names, dtypes, shapes and values of tensors."""
    found = hashlib.blake2b(digest_size=12)
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextmanager
def _readable(path: Path, otherwise: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except (SafetensorError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TrlError(f"{path}: {otherwise} ({in_one_line(error)}); write it again") from None


@contextmanager
def _opened_npz(path: Path) -> Iterator[Any]:
    with _readable(path, "not a .npz file of numbers, or damaged"), np.load(path, allow_pickle=False) as file:
        yield file


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))  # PyTorch needs native byte order


def _describe(file: Any, name: str) -> str:
    try:
        return f"{name} {list(file[name].shape)}"
    except ValueError:  # it is pickled
        return f"{name} (Python objects)"
