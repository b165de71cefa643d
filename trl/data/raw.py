"""Raw files: where to find them, and how to report a broken one."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from trl.common.errors import TrlError


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/trl, or ~/.cache/trl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl"


def find_folder(raw: Path, *names: str) -> Path:
    """The first of the folders `names` in `raw` that exists; TrlError if none does."""
    for name in names:
        if (raw / name).is_dir():
            return raw / name
    raise broken(raw, f"has no folder {' or '.join(names)}")


def broken(path: Path, why: str) -> TrlError:
    """The error for an unusable raw file or folder: what is wrong with it, and how to fix it."""
    cache = cache_folder()
    if path.is_relative_to(cache):
        return TrlError(f"{path}: {why}; delete {cache / path.relative_to(cache).parts[0]} to download it again")
    return TrlError(f"{path}: {why}; replace it, or unset TRL_RAW_DATA (the folder searched) to download")


def read(path: Path) -> bytes:
    """The file's bytes; TrlError if it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from None


def verify(path: Path, content: bytes, size: int, algorithm: str, digest: str) -> None:
    """TrlError naming `path` unless `content`, read from it, has `size` bytes and the hexadecimal `digest`."""
    if len(content) < size:
        raise broken(path, f"truncated: {len(content):,} of {size:,} bytes")
    actual = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if actual != digest:
        raise broken(path, f"{algorithm} is {actual}, not {digest}: damaged or another version")


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Turn errors while downloading the data set `name` into a TrlError."""
    try:
        yield
    except (OSError, RuntimeError, HTTPException) as error:  # torchvision reports a wrong checksum as RuntimeError
        why = " ".join(str(error).split())
        raise TrlError(f"{name}: download failed ({why}); or set TRL_RAW_DATA to a folder with the files") from None
