"""What a stage started from: it may not change while the stage runs, or the record would be wrong.

DVC reads parameters and hashes files once a command has ended. It would record an edit made meanwhile as what ran.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl.common.errors import TrlError

PARAMS, GRAPH = Path("params.yaml"), Path("dvc.yaml")
CODE = ("trl/", "tasks/")
PATIENCE = 0.5  # seconds for an editor that is writing a file
ABSENT = object()
SHOWN = 5  # keys and files that an error names


@dataclass(frozen=True)
class Inputs:
    """The sections of params.yaml (`keys`, in its text `params`) and the files that a stage depends on."""

    params: str
    keys: tuple[str, ...]
    files: Mapping[str, str]  # path → what `_look` saw

    def check(self) -> None:
        """TrlError that names the keys and files that are no longer as they were."""
        if self._changed():
            time.sleep(PATIENCE)
            if changed := self._changed():
                more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
                raise TrlError(
                    f"{', '.join(changed[:SHOWN])}{more} changed while this stage ran, so its results were not "
                    "recorded; restore what changed and repeat the command to keep the work done so far"
                )

    def _changed(self) -> list[str]:
        now = _text(PARAMS)
        keys = [] if now == self.params else _differences(_sections(self.params, self.keys), _sections(now, self.keys))
        return [f"{PARAMS}: {key}" for key in keys] + [path for path, seen in self.files.items() if _look(path) != seen]


def inputs_of(name: str, item: Mapping[str, object], params: str) -> Inputs:
    """What dvc.yaml, if there is one, says that the stage called `name` depends on, for one `item` of its matrix.

    `params`: the text of params.yaml that the stage has read.
    """
    stage = yaml.safe_load(_text(GRAPH) or "{}").get("stages", {}).get(name, {})
    keys, files = (
        [_filled(entry, item) for entry in stage.get(kind, ()) if isinstance(entry, str)] for kind in ("params", "deps")
    )
    return Inputs(params, tuple(keys), {path: _look(path) for path in files})


def params_text() -> str:
    """The text of params.yaml; empty if it cannot be read."""
    return _text(PARAMS)


def _filled(text: str, item: Mapping[str, object]) -> str:
    for key, value in item.items():
        text = text.replace(f"${{item.{key}}}", str(value))
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _sections(text: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """The value of each key (`a.b.c`) in a YAML text; ABSENT where there is none."""
    try:
        whole = yaml.safe_load(text)
    except yaml.YAMLError:
        whole = None
    found = {}
    for key in keys:
        value = whole
        for part in key.split("."):
            value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
        found[key] = value
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys, as deep as possible, whose values differ."""
    found: list[str] = []
    for key in {**before, **after}:
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found


def _look(path: str) -> str:
    """Something that changes with a file or folder: the content of code, sizes and times of all else."""
    try:
        if path.startswith(CODE):
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return hashlib.sha256("\n".join(_stats(Path(path))).encode()).hexdigest()
    except OSError:
        return ""


def _stats(path: Path) -> Iterator[str]:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        yield f"{file} {stat.st_size} {stat.st_mtime_ns}"
