"""What this project requires, from pyproject.toml, and what that requires in turn, from what is installed here."""

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import ROOT


def declared(*extras: str) -> list[str]:
    """The requirements of this project and of its `extras`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]


def closure(requirements: Iterable[str]) -> set[str]:
    """Canonical names of the distributions that pip installs for `requirements` in an environment like this one."""
    found: set[tuple[str, str]] = set()  # name and extra
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for other, extra in found if other == name}:
            found.add((name, extra))
            waiting += [each for each in needed(name) if not each.marker or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


@cache
def needed(name: str) -> list[Requirement]:
    """What an installed distribution requires, with its markers."""
    return [Requirement(line) for line in requires(name) or ()]
