"""The progress of an evaluation, in memory or on disk, so that an interrupted evaluation can resume."""

import hashlib
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from inspect import getattr_static
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trl.common.arrays import digest, read_npy
from trl.common.code_version import source_digest, versions
from trl.common.errors import TrlError
from trl.common.files import write_atomic
from trl.common.progress import say
from trl.evaluation.cost import Cost

RESULTS, IMAGES = "results.safetensors", "adversarials.npy"
KNOWN = ("trl", "torch", "torchvision")  # packages whose code or version is part of the fingerprint
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class State:
    """How many units of work are `done`, the results so far (`flags`, `adversarials`), and the costs.

    `flags`: bool [n] by name. `adversarials`: float32 like the images. With a `folder`, `save` writes everything to
    disk, and the next State of the same folder starts from there. A unit that was interrupted is repeated with the same
    result, so images written after the last `save` do no harm.
    """

    def __init__(self, folder: Path | None, shape: torch.Size) -> None:
        self.folder, self.done = folder, 0
        self.flags: dict[str, Tensor] = {}
        self.costs: dict[str, Cost] = {}
        if folder is None:
            self.adversarials = torch.zeros(shape, dtype=torch.float32)
            return
        kept = self._load()
        try:
            if not kept:
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / IMAGES, np.zeros(shape, np.float32))  # in full: a full disk fails here
            images = np.lib.format.open_memmap(folder / IMAGES, mode="r+")
        except OSError as error:
            raise TrlError(
                f"{folder}: cannot store the evaluation's state ({error.strerror}); free space or choose another folder"
            ) from None
        self.adversarials = torch.from_numpy(images)

    def save(self) -> None:
        """Write everything to disk, if there is a folder; TrlError if it cannot be written."""
        if self.folder is not None:
            meta = {"done": self.done, "costs": {name: asdict(cost) for name, cost in self.costs.items()}}
            # the prefix, since safetensors reserves the name __metadata__
            flags = {f"correct.{name}": flags for name, flags in self.flags.items()}
            write_atomic(self.folder / RESULTS, save(flags, {"meta": json.dumps(meta)}))

    def take(self) -> Tensor:
        """Hand the images over to the caller: changing them does not change the folder."""
        if self.folder is None:
            return self.adversarials
        self.adversarials = torch.empty(0)  # first, so that memory holds them only once
        return read_npy(self.folder / IMAGES)

    def _load(self) -> bool:
        assert self.folder is not None
        path = self.folder / RESULTS
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads(file.metadata()["meta"])
                names = file.keys()
                self.flags = {name.removeprefix("correct."): file.get_tensor(name) for name in names}
            np.lib.format.open_memmap(self.folder / IMAGES, mode="r")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            say(f"{self.folder}: the state of an interrupted evaluation is damaged ({error}); starting over")
            self.flags = {}
            return False
        self.done, self.costs = meta["done"], {name: Cost(**cost) for name, cost in meta["costs"].items()}
        return True


def fingerprint(
    model: nn.Module, x: Tensor, y: Tensor, attacks: Mapping[str, Any], *settings: Any, key: str | None = None
) -> str:
    """A hash of everything an evaluation depends on, including code, so that only the same evaluation uses a state.

    TrlError for a model, attack or setting (such as the criterion) whose code cannot be tracked if there is no `key`.
    """
    given = {"the model": model, **{f"attack {name!r}": attack for name, attack in attacks.items()}}
    description, found = Description(key), []
    for what, value in [*given.items(), *(("the evaluation", setting) for setting in settings)]:
        try:
            found.append(f"{what}: {description.text(value)}")
        except Unknown as unknown:
            raise TrlError(
                f"{what} needs a key to be resumed, since {unknown} is your own code or cannot be tracked; "
                "give key=…, a text that you change whenever the code of your model or attacks changes, or no state"
            ) from None
    code = source_digest("trl.evaluation.evaluate", *(m for m in description.modules if m.startswith("trl.")))
    text = repr((found, key, digest({"x": x, "y": y}), code, versions()))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class Unknown(Exception):
    """Code outside the known packages: changes in it cannot be noticed."""


@dataclass
class Description:
    """Models, attacks and their options as text: the same in every process, different if results may differ.

    Functions and classes of this package, PyTorch and torchvision are given by name, and `modules` collects the modules
    that define them; their instances by all attributes, for a module including hooks, buffers and weights. Anything
    else requires a `key`, though its readable attributes are included as well. Not covered: global module hooks, and
    replaced methods other than `forward` of PyTorch's own classes.
    """

    key: str | None = None
    modules: set[str] = field(default_factory=set)
    around: set[int] = field(default_factory=set)  # ids of the enclosing objects, to stop at cycles

    def text(self, value: Any) -> str:
        """Describe a model, an attack or an option; Unknown for code that requires a key."""
        kind = type(value)
        if kind in PLAIN or isinstance(value, np.generic | Fraction | PurePath):
            return repr(value)
        if kind in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_quantized:
            return digest({"": value})
        if kind in (dict, OrderedDict, MappingProxyType):
            return f"{{{', '.join(f'{self.text(k)}: {self.text(v)}' for k, v in value.items())}}}"
        if kind in (list, tuple, torch.Size):
            return f"[{', '.join(map(self.text, value))}]"
        if kind is np.ndarray and value.dtype.kind in "biuf":
            return digest({"": torch.from_numpy(value.copy())})
        if kind in (set, frozenset):
            return f"{{{', '.join(sorted(map(self.text, value)))}}}"
        if kind is partial:
            options = [f"{name}={self.text(option)}" for name, option in sorted(value.keywords.items())]
            return f"{self.text(value.func)}({', '.join([*map(self.text, value.args), *options])})"
        if kind is MethodType:
            return f"{self._name(value.__func__)[0]} of {self.text(value.__self__)}"
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return self._name(value)[0]
        if isinstance(value, nn.Module):
            parts = value.named_modules(remove_duplicate=False)
            return f"[{', '.join(f'{name}: {self._object(part)}' for name, part in parts)}] {_quantised(value)}"
        return self._object(value)

    def _object(self, value: Any) -> str:
        """The class and attributes of an object; for a class outside KNOWN, its own `__repr__` if it has one."""
        is_module, kind = isinstance(value, nn.Module), cast(Any, type(value))
        # attributes tell everything only for our own objects and for modules
        packages = KNOWN if is_module else KNOWN[:1] if hasattr(value, "__dict__") else ()
        name, known = self._name(kind, packages)
        if not known and not is_module and "__repr__" in vars(kind):
            return f"{name} {re.sub(' at 0x[0-9a-f]+', '', repr(value))}"
        if id(value) in self.around:  # a cycle
            return name
        self.around.add(id(value))
        try:
            # the class may have been patched
            found = [self.text(getattr_static(kind, "forward"))] if is_module else []
            found += [f"{option}={self.text(content)}" for option, content in _attributes(value)]
        finally:
            self.around.discard(id(value))
        return f"{name}({', '.join(found)})"

    def _name(self, value: Any, packages: Collection[str] = KNOWN) -> tuple[str, bool]:
        """`module:name` of a class or function, and whether it is known: still found there, in one of `packages`."""
        module, name = value.__module__ or "", value.__qualname__
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        known = found is value and module.partition(".")[0] in packages
        if known:
            self.modules.add(module)
        elif self.key is None:
            raise Unknown(f"{module}.{name}")
        return f"{module}:{name}", known


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object by name, including slots; for a module, without its submodules and mode."""
    slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
    held = {slot: getattr(value, slot) for slot in slots if slot != "__dict__" and hasattr(value, slot)}
    for option, content in {**held, **getattr(value, "__dict__", {})}.items():
        if isinstance(value, nn.Module) and option in ("_modules", "training"):
            continue
        # hook ids depend on the history of the process
        yield option, list(content.values()) if "hooks" in option and isinstance(content, dict) else content


def _quantised(model: nn.Module) -> str:
    """A hash of the weights of quantised layers, which are not parameters."""
    leaves = {f"{name} {i}": leaf for name, v in model.state_dict().items() for i, leaf in enumerate(tree_leaves(v))}
    return digest(
        {k: leaf.dequantize() for k, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.is_quantized}
    )
