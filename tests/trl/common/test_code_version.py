"""The code that a module depends on: a change in it is noticed, and one elsewhere is not."""

import shutil
from pathlib import Path

import pytest

from trl.common.code_version import ROOT, source_digest, source_files, versions

FILES = {
    "__init__": "",
    "registry": "VALUE = 0\n",
    "leaf": "VALUE = 1\n",
    "late": "VALUE = 2\n",
    "typed": "class Kind: ...\n",
    "alone": "VALUE = 3\n",
    "pair/__init__": "from . import one\n",
    "pair/one": "import trl.leaf\n",
    "pair/two": "from ..late import VALUE\n",
    "pair/registry": "NAMES = {}\n",
    "offers/__init__": "from trl.leaf import VALUE as value\nfrom trl.late import VALUE\n",
    "takes": "from trl.offers import value\nfrom trl.pair.registry import NAMES\nfrom trl import registry\n",
    "user": """
from typing import TYPE_CHECKING
import math, torch
from trl import leaf
if TYPE_CHECKING:
    from trl.typed import Kind
else:
    from trl.pair import one
def work():
    from trl.late import VALUE
REGISTRY = "trl.alone:VALUE"
""",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / f"trl/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def names(root: Path, *modules: str) -> set[str]:
    return {str(path.relative_to(root / "trl").with_suffix("")) for path in source_files(*modules, root=root)}


def test_what_is_imported_whatever_the_form(root: Path) -> None:
    assert names(root, "trl.leaf") == {"leaf"}
    assert names(root, "trl.pair.two") == {"pair/two", "late"}
    assert names(root, "trl.user") == {"user", "leaf", "late", "pair/one"}
    assert names(root, "trl.leaf", "trl.alone") == {"leaf", "alone"}
    assert names(root, "trl.leaf.VALUE") == {"leaf"}
    with pytest.raises(ModuleNotFoundError, match=r"no file of trl\.nothing\.at_all"):
        source_files("trl.nothing.at_all", root=root)


def test_what_a_package_offers_is_where_it_is_and_a_registry_is_nothing(root: Path) -> None:
    assert names(root, "trl.takes") == {"takes", "leaf", "registry"}


@pytest.mark.parametrize("changed", [name for name in FILES if name != "user"])
def test_a_change_is_noticed_by_what_imports_it(root: Path, changed: str) -> None:
    before = source_digest("trl.user", root=root)
    with (root / f"trl/{changed}.py").open("a") as file:
        file.write("# changed\n")
    noticed = source_digest("trl.user", root=root) != before
    assert noticed == (changed in names(root, "trl.user"))


def test_of_the_package_itself(tmp_path: Path) -> None:
    """An objective's code is its own, what both use is both's, and what neither imports is nobody's."""
    shutil.copytree(ROOT / "trl", tmp_path / "trl", ignore=shutil.ignore_patterns("__pycache__"))
    modules = ("trl.objectives.tla", "trl.objectives.natural", "trl.training.loop", "trl.evaluation.evaluate")

    def digests() -> list[str]:
        return [source_digest(module, root=tmp_path) for module in modules]

    before = digests()
    assert before == [source_digest(module) for module in modules]
    for path, expected in (
        ("objectives/tla.py", [1, 0, 0, 0]),
        ("attacks/apgd.py", [0, 0, 0, 0]),
        ("attacks/base.py", [1, 1, 1, 1]),
    ):
        content = (tmp_path / "trl" / path).read_text()
        (tmp_path / "trl" / path).write_text(content + "\nCHANGED = True\n")
        assert [a != b for a, b in zip(before, digests(), strict=True)] == [bool(flag) for flag in expected]
        (tmp_path / "trl" / path).write_text(content)


def test_versions_are_those_that_are_installed() -> None:
    assert set(versions()) == {"tla-robustness", "torch", "torchvision", "pytorch-metric-learning"}
    assert "not installed" not in versions().values()
