"""Arrays in files of other programs, and hashes of arrays. Nothing is ever unpickled."""

import hashlib
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trl.errors import TrlError, in_one_line


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name; TrlError if it cannot be read or is damaged."""
    with _readable(path, "damaged"):
        return load_file(path)


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The arrays of a file by name, or those of `names` that it has; TrlError if it cannot be read or is damaged."""
    with _readable(path, "no .npz file of numbers, or damaged"), np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if names is None or name in names}


def read_npy(path: Path) -> Tensor:
    """The array of a file; TrlError if it cannot be read or is damaged."""
    with _readable(path, "no .npy file of numbers, or damaged"):
        return torch.from_numpy(np.load(path, allow_pickle=False))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the names, types, shapes and values of tensors."""
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
