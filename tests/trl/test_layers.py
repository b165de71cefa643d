"""Imports point one way: flows → tasks → trl."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
