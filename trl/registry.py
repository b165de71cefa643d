"""Name → implementation tables whose options are checked against the implementation's own signature.

A new data set, model, attack, objective or detector is one file and one line in its folder's registry. Its keyword-only
parameters are its options: their annotations (`Annotated[float, Field(gt=0)]`) and defaults say what params.yaml may hold.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from trl.errors import TrlError


class Registry:
    """Implementations by name, given as `"package.module:attribute"` and imported only when asked for.

    `kind` is the word used in messages ("attack"); a name ending in `*` serves every name with that prefix.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind, self._entries = kind, dict(entries)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def get(self, name: str) -> Callable[..., Any]:
        """The implementation called `name`; TrlError names the known ones if there is none."""
        entry = self._entries.get(name) or next(
            (e for n, e in self._entries.items() if n.endswith("*") and name.startswith(n[:-1])), None
        )
        if entry is None:
            raise TrlError(f"unknown {self.kind} {name!r}; known: {', '.join(self.names())}")
        module, attribute = entry.split(":")
        implementation: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return implementation

    def options(self, name: str) -> type[BaseModel]:
        """A pydantic model of the keyword-only parameters of `name`; unknown keys are refused."""
        return _options_model(self.get(name))


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
