"""An evaluation's books, in memory or on disk, where a killed evaluation finds them again."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trl.arrays import digest, read_npy
from trl.code_version import source_digest, versions
from trl.errors import TrlError
from trl.evaluation.cost import Cost
from trl.files import write_atomic
from trl.progress import say

BOOKS, IMAGES = "books.safetensors", "adversarials.npy"


class State:
    """Which units of work are `done`, what each sample's results are so far (`flags`), and the costs.

    `flags`: bool [n] by name. `adversarials`: float32 like the images. With a `folder`, `save` makes all of it durable
    and the next State of the same folder starts from there. A unit that was under way is repeated, with the same
    result, so that images written after the last `save` do no harm.
    """

    def __init__(self, folder: Path | None, shape: torch.Size) -> None:
        self.folder, self.done = folder, 0
        self.flags: dict[str, Tensor] = {}
        self.costs: dict[str, Cost] = {}
        if folder is None:
            self.adversarials = torch.zeros(shape)
            return
        kept = self._load()
        try:
            if not kept:
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / IMAGES, np.zeros(shape, np.float32))  # all of it now: a full disk shows here
            images = np.lib.format.open_memmap(folder / IMAGES, mode="r+")
        except OSError as error:
            raise TrlError(f"{folder}: cannot hold the evaluation's state ({error.strerror}); make room") from None
        self.adversarials = torch.from_numpy(images)

    def save(self) -> None:
        """Make everything so far durable; TrlError if the disk is full or the folder cannot be written."""
        if self.folder is not None:
            meta = {"done": self.done, "costs": {name: asdict(cost) for name, cost in self.costs.items()}}
            flags = {f"correct.{name}": flags for name, flags in self.flags.items()}  # safetensors reserves a name
            write_atomic(self.folder / BOOKS, save(flags, {"meta": json.dumps(meta)}))

    def take(self) -> Tensor:
        """The images, which are the caller's from now on: a change in them does not reach the folder."""
        if self.folder is None:
            return self.adversarials
        self.adversarials = torch.empty(0)  # first, so that they are in memory once
        return read_npy(self.folder / IMAGES)

    def _load(self) -> bool:
        assert self.folder is not None
        path = self.folder / BOOKS
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads(file.metadata()["meta"])
                self.flags = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            np.lib.format.open_memmap(self.folder / IMAGES, mode="r")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            say(f"{self.folder}: the state of an interrupted evaluation is damaged ({error}); starting anew")
            self.flags = {}
            return False
        self.done, self.costs = meta["done"], {name: Cost(**cost) for name, cost in meta["costs"].items()}
        return True


def fingerprint(model: nn.Module, x: Tensor, y: Tensor, attacks: Mapping[str, Any], *settings: Any) -> str:
    """A hash of all that an evaluation's result depends on, so that a state is only used by the same evaluation."""
    described = {name: describe(attack) for name, attack in attacks.items()}
    text = repr((type(model).__qualname__, settings, described, digest({**model.state_dict(), "x": x, "y": y})))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def describe(attack: Callable[..., Any]) -> str:
    """An attack as text: its function and options, the same in every process."""
    if isinstance(attack, partial):
        options = [f"{name}={value!r}" for name, value in sorted(attack.keywords.items())]
        arguments = [describe(value) if callable(value) else repr(value) for value in attack.args]
        return f"{describe(attack.func)}({_plain(', '.join([*arguments, *options]))})"
    parts = getattr(attack, "parts", None)
    if isinstance(parts, Mapping):
        return repr({name: describe(part) for name, part in parts.items()})
    return str(getattr(attack, "__qualname__", None) or _plain(repr(attack)))


def _plain(text: str) -> str:
    """Without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
