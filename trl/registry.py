"""Registries map names to implementations, and check options against the implementation's signature.

A new data set, model, attack, objective or detector is one file and one line in its folder's registry. Its keyword-only
parameters are its options; annotations such as `Annotated[float, Field(gt=0)]` and defaults define what is allowed.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails, PydanticCustomError

from trl.common.errors import TrlError
from trl.common.names import is_name

REFUSED = "refused"


class Registry:
    """Implementations by name, given as `"package.module:attribute"`, imported on demand.

    `kind` is the word used in messages ("attack"); a name ending in `*` matches every name with that prefix.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind, self._entries = kind, dict(entries)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def get(self, name: str) -> Callable[..., Any]:
        """The implementation called `name`; TrlError, listing the known names, if there is none."""
        module, attribute = self._entry(name)
        implementation: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return implementation

    def module(self, name: str) -> str:
        """The module of the implementation called `name`, without importing it; errors as for `get`."""
        return self._entry(name)[0]

    def _entry(self, name: str) -> tuple[str, str]:
        entry = self._entries.get(name) or next(
            (e for n, e in self._entries.items() if n.endswith("*") and name.startswith(n[:-1])), None
        )
        if entry is None:
            raise TrlError(f"unknown {self.kind} {name!r}; known: {', '.join(self.names())}")
        module, attribute = entry.split(":")
        return module, attribute

    def options(self, name: str) -> type[BaseModel]:
        """A pydantic model of the keyword-only parameters of `name`; unknown keys are errors."""
        return _options_model(self.get(name))

    def check(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The `options` of `name`, converted and with defaults filled in; TrlError if they are invalid."""
        try:
            return dict(self.options(name).model_validate(options))
        except ValidationError as error:
            raise TrlError(f"{self.kind} {name}: {explain(error, self.options(name))}") from None

    def build(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call the implementation `name` with `arguments` and checked `options`; TrlError if those are invalid."""
        return self.get(name)(*arguments, **self.check(name, options))


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one line: `key.path: what is wrong`."""
    first = error.errors()[0]
    loc = [*first["loc"], *first.get("ctx", {}).get("loc", ())]
    if loc[-1:] == ["[key]"]:  # the key itself is wrong, and the reason shows it
        del loc[-2:]
    path = ".".join(part if is_name(part) else repr(part) for part in map(str, loc))
    return path + (": " if loc else "") + _reason(first, root)


def _reason(error: ErrorDetails, root: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        owner: Any = root
        for part in error["loc"][:-1]:
            if isinstance(owner, type) and issubclass(owner, BaseModel):
                owner = owner.model_fields[str(part)].annotation
            else:  # a value of a mapping or a tuple
                owner = getattr(owner, "__args__", [None])[-1]
            if isinstance(owner, UnionType):  # a section that may be left out
                owner = next(kind for kind in owner.__args__ if kind is not NoneType)
        fields = getattr(owner, "model_fields", {})
        return f"unknown key; allowed: {', '.join(fields) if fields else 'none'}"
    if error["type"] == "missing":
        return "is missing"
    given = error["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | None) else ""
    return error["msg"].removeprefix("Input ") + ("" if error["type"] == REFUSED else shown)


def refuse(why: str, loc: tuple[Any, ...] = ()) -> PydanticCustomError:
    """An error to raise in a pydantic validator; `explain` shows its text unchanged."""
    return PydanticCustomError(REFUSED, "{why}", {"why": why, "loc": loc})


@cache
def _options_model(implementation: Callable[..., Any]) -> type[BaseModel]:
    parameters = inspect.signature(implementation, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    name = getattr(implementation, "__name__", "options")
    config = ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=True, allow_inf_nan=False)
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model
