"""Specs such as `{name: pgd, steps: 10}`: a registered implementation with its options."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from trl.common.errors import TrlError
from trl.common.names import check_name
from trl.registry import Registry, explain, refuse

AS_WRITTEN = {"as written": True}  # validation context that leaves names and options unchecked


def _checked_name(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse(f"name {value!r} is not a string: put it in quotes")
    try:
        return check_name(value, "name")
    except TrlError as error:
        raise refuse(str(error)) from None


Name = Annotated[str, BeforeValidator(_checked_name)]  # of a recipe, a method, an attack, …


class Section(BaseModel):
    """A section of params.yaml: immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, revalidate_instances="always")


class Spec(Section):
    """A registered implementation by name with all its options, or only those given if loaded `as_written`."""

    name: str
    options: dict[str, Any]


def spec_of(entry: str, former: str | None = None) -> Any:
    """The type of a field that holds a `Spec` `{name: …, option: value, …}` for the registry `entry`.

    `former` is the old name of the key `name`; using it is an error that says so.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Spec):
            return check_spec(entry, value.name, value.options, info)
        return check_spec(entry, *split_name(entry, value, former), info)

    return Annotated[Spec, BeforeValidator(check)]


def flat_spec_of(entry: str) -> Any:
    """The type of a field that holds `{name: …, option: value, …}` for the registry `entry`, as a plain mapping.

    Its options are checked and have their defaults filled in, unless the context is AS_WRITTEN.
    """

    def check(value: Any, info: ValidationInfo) -> dict[str, Any]:
        spec = check_spec(entry, *split_name(entry, value), info)
        return {"name": spec.name, **spec.options}

    return Annotated[dict[str, Any], BeforeValidator(check)]


def split_name(entry: str, value: Any, former: str | None = None) -> tuple[str, dict[str, Any]]:
    """Split `{name: …, option: value, …}` into name and options; for `former` see `spec_of`."""
    if isinstance(value, Mapping) and former in value:
        raise refuse("is called `name` now", (former,))
    if not (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
        raise refuse(f"needs `name:`, one of {', '.join(_registry(entry).names())}")
    return _checked_name(value["name"]), {key: option for key, option in value.items() if key != "name"}


def describe_spec(spec: Mapping[str, Any]) -> str:
    """`{name: …, option: value, …}` as the command line writes it: `background:threshold=0.1`."""
    options = ",".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}:{options}" if options else str(spec["name"])


def check_spec(
    entry: str, name: str, options: Mapping[str, Any], info: ValidationInfo, also: tuple[str, ...] = ()
) -> Spec:
    """The `Spec` of `name` in the registry `entry`; options are checked unless the context is AS_WRITTEN.

    `also`: further keys that are allowed besides the options; errors about unknown keys list them, too.
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


class SpecAndMore(Spec):
    """A `Spec` for the registry `entry` with further fields, which subclasses add, in the same mapping.

    `former` is the old name of the key `name`; using it is an error that says so.
    """

    entry: ClassVar[str]
    former: ClassVar[str | None] = None

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        more = tuple(key for key in cls.model_fields if key not in Spec.model_fields)
        if isinstance(value, cls):
            own = {key: getattr(value, key) for key in more}
            name, options = value.name, value.options
        else:
            name, options = split_name(cls.entry, value, cls.former)
            own = {key: options.pop(key) for key in more if key in options}
        spec = check_spec(cls.entry, name, options, info, also=more)
        return handler(spec.model_dump() | own)


# In a mapping of specs, an entry without `name:` uses its key as the name.
NAMED_BY_KEY = BeforeValidator(_name_entries)


def _registry(entry: str) -> Registry:
    """Import `package:NAME`, only when names are checked, since implementations load PyTorch."""
    package, name = entry.split(":")
    registry: Registry = getattr(importlib.import_module(package), name)
    return registry


if TYPE_CHECKING:
    RegionSpec = dict[str, Any]
else:
    RegionSpec = flat_spec_of("trl.regions:REGIONS")
