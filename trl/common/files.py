"""Write files atomically: they are either complete or absent."""

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl.common.errors import TrlError


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`; a reader, a crash or a full disk never leaves a partial file.

    The old content stays until the new one is on disk. TrlError, with the system's reason, if it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        kept = "; the old version is kept" if path.exists() else ""
        raise TrlError(
            f"{path}: cannot be written ({error.strerror}){kept}: free space or check permissions, then repeat"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; ValueError for NaN, which other tools cannot read."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` under the union of their keys, in order of appearance; None and missing values become empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
