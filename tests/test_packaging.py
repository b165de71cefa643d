"""Who attacks or trains installs no Prefect, MLflow and DVC; who runs the pipeline without them is told so."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks import LIBRARIES
from tests.helpers import ROOT
from tests.helpers.requirements import closure, declared

PIPELINE = {"dvc", "mlflow", "prefect"}
OURS = {"trl", "tasks", "flows"}
PROVIDERS = {
    module: set(map(canonicalize_name, distributions)) for module, distributions in packages_distributions().items()
}


def imports(package: str) -> Iterator[tuple[str, Path]]:
    """Every library that a package's files import, inside functions and for type checkers too, with the file."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for library in {name.split(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                yield library, path.relative_to(ROOT)


@pytest.mark.parametrize(("package", "extras"), [("trl", ()), ("tasks", ("pipeline",)), ("flows", ("pipeline",))])
def test_a_package_imports_only_what_is_installed_for_it(package: str, extras: tuple[str, ...]) -> None:
    installed = closure(declared(*extras))
    wrong = [(name, path) for name, path in imports(package) if not PROVIDERS.get(name, set()) & installed]
    assert wrong == []


def test_only_the_extra_brings_the_pipeline() -> None:
    assert closure(declared()) & PIPELINE == set()
    assert closure(declared("pipeline")) >= PIPELINE


def test_all_that_the_extra_brings_is_looked_for() -> None:
    """All but fastapi, which is only kept from a version that Prefect does not bear."""
    extra = set(declared("pipeline")) - set(declared())
    named = {canonicalize_name(Requirement(line).name) for line in extra} - {"fastapi"}
    assert {name for library in LIBRARIES for name in PROVIDERS[library] & named} == named
    assert all(PROVIDERS[library] & named for library in LIBRARIES)


@pytest.mark.parametrize("module", ["tasks.train", "flows.full"])
def test_without_the_extra_a_command_is_one_line_that_says_what_to_install(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules |= dict.fromkeys(('mlflow', 'dvc'))\n")
    command = [sys.executable, "-m", module, "--help"]
    path = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the pipeline needs dvc, mlflow: pip install 'tla-robustness[pipeline]'" in line


def test_each_console_script_is_a_function_of_trl() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert all(target.startswith("trl.") for target in scripts.values())
