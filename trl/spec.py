"""What a recipe names: `{name: pgd, steps: 10}`, a registered implementation with its options."""

import importlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from trl.common.errors import TrlError
from trl.registry import Registry, explain, refuse

AS_WRITTEN = {"as written": True}  # the context in which names and options of implementations are not checked


class Section(BaseModel):
    """A section of params.yaml: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, revalidate_instances="always")


class Spec(Section):
    """A registered implementation by name, with all of its options (defaults filled in), or with those written."""

    name: str
    options: dict[str, Any]


def spec_of(entry: str, former: str | None = None) -> Any:
    """The type of a field that holds `{name: …, option: value, …}` of the registry `entry`: a `Spec`.

    `former` is what the key `name` was called: it is refused by an error that says the new one.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Spec):
            return check_spec(entry, value.name, value.options, info)
        if isinstance(value, Mapping) and former in value:
            raise refuse("is called `name` now", (former,))
        return check_spec(entry, *split_name(entry, value), info)

    return Annotated[Spec, BeforeValidator(check)]


def split_name(entry: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The name and the options of `{name: …, option: value, …}`."""
    if not (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
        raise refuse(f"needs `name:`, one of {', '.join(_registry(entry).names())}")
    return value["name"], {key: option for key, option in value.items() if key != "name"}


def check_spec(
    entry: str, name: str, options: Mapping[str, Any], info: ValidationInfo, also: tuple[str, ...] = ()
) -> Spec:
    """The `Spec` of what the registry `entry` calls `name`, its options checked unless they stay as written.

    `also`: the keys that may stand beside the options, which an error about an unknown key names with them.
    """
    if info.context is AS_WRITTEN:
        return Spec(name=name, options=dict(options))
    try:
        model = _registry(entry).options(name)
    except TrlError as error:
        raise refuse(str(error)) from None
    allowed = ", ".join([*also, *model.model_fields]) or "none"
    for key in options:
        if key not in model.model_fields:
            raise refuse(f"unknown key; allowed: {allowed}", (key,))
    try:
        return Spec(name=name, options=model.model_validate(options).model_dump())
    except ValidationError as error:
        where, _, why = explain(error, model).partition(": ")
        raise refuse(why, (where,)) from None


def _name_entries(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {n: {"name": n, **(s or {})} if isinstance(s, Mapping | None) else s for n, s in value.items()}


# In a mapping of specs, an entry without `name:` means the implementation of the entry's own name.
NAMED_BY_KEY = BeforeValidator(_name_entries)


def _registry(entry: str) -> Registry:
    """`package:NAME`, imported only when names are checked: with the implementations comes PyTorch."""
    package, name = entry.split(":")
    registry: Registry = getattr(importlib.import_module(package), name)
    return registry
