"""Imports point one way: flows → tasks → trl, and within trl from a room to those below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# from the ground up: what a room holds imports only what stands to its left
ROOMS = (
    *(
        "common",
        "nn",
        "registry",
        "spec",
        "regions",
        "threat",
        "config",
        "results",
        "data",
        "models",
        "metric",
        "detectors",
        "attacks",
    ),
    *("evaluation", "objectives", "training", "proxies", "detection", "representation", "report", "cli"),
)
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in (ROOT / "trl").rglob("*.py")
)
BLOCKED = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Absent())
for module in {modules}:
    importlib.import_module(module)
"""


def import_without(modules: list[str], *blocked: str) -> "subprocess.CompletedProcess[str]":
    code = BLOCKED.format(blocked=set(blocked), modules=modules)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("name", ROOMS)
def test_no_import_runs_upward(name: str) -> None:
    """Those inside functions and for type checkers count, too."""
    for module in (module for module in MODULES if f"{module}.".startswith(f"trl.{name}.")):
        path = ROOT.joinpath(*module.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            given = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            given = [alias.name for alias in node.names] if isinstance(node, ast.Import) else given
            for imported in (name for name in given if name.startswith("trl.")):
                assert ROOMS.index(room(imported)) <= ROOMS.index(name), f"{module} imports {imported}"


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES if module != "trl"} == set(ROOMS)


def test_trl_imports_without_prefect_mlflow_and_dvc() -> None:
    assert len(MODULES) > 30
    done = import_without(MODULES, "prefect", "mlflow", "dvc", "tasks", "flows")
    assert done.returncode == 0, done.stderr


def test_the_block_works() -> None:
    done = import_without(["mlflow"], "mlflow")
    assert done.returncode == 1
    assert "mlflow is not installed here" in done.stderr


def test_what_a_command_does_not_need_is_not_imported() -> None:
    heavy = ("torchvision", "matplotlib", "pytorch_metric_learning", "pandas")
    done = import_without(["trl.config", "trl.training", "trl.objectives", "trl.report"], *heavy)
    assert done.returncode == 0, done.stderr
