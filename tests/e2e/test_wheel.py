"""The wheel, in environments that hold only what it requires: one for attacks and training, one for the pipeline."""

import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.requirements import closure, declared

pytestmark = pytest.mark.e2e
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
IMPORT_ALL = """
import importlib, pkgutil, trl
for module in pkgutil.walk_packages(trl.__path__, "trl."):
    importlib.import_module(module.name)
print(trl.__file__)
"""


class Environment:
    """A virtual environment with the wheel, in which what that requires is linked from this environment."""

    def __init__(self, root: Path, wheel: Path, *extras: str) -> None:
        self.root = root
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
        (self.packages,) = root.glob("lib/python*/site-packages")
        for name in closure(declared(*extras)):
            found = distribution(name)
            for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (link := self.packages / top).exists():  # some share a folder, such as `nvidia`
                    link.symlink_to(str(found.locate_file(top)))
        # without an index pip installs it only if all that it requires is here
        named = f"tla-robustness[{','.join(extras)}] @ {wheel.as_uri()}"
        self.run(*PIP, "--python", root / "bin/python", "install", "--quiet", "--no-index", named)

    def run(self, *command: str | Path) -> str:
        """The command's output, from outside the project; it must succeed."""
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self, *arguments: str) -> str:
        return self.run(self.root / "bin/python", "-I", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in ("trl", "tasks", "flows"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    subprocess.run(command, check=True)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("plain"), wheel)


def test_it_attacks_from_the_shell_and_needs_no_pipeline(plain: Environment) -> None:
    assert not {"prefect", "mlflow", "dvc"} & {path.name for path in plain.packages.iterdir()}
    assert Path(plain.python("-c", IMPORT_ALL).strip()).parent == plain.packages / "trl"
    make = "from trl.models import build_model, save_model as s; s(build_model('mlp', 10, (1, 8, 8)), 'model')"
    plain.python("-c", make)
    chosen = ("--model", "model", "--data", "digits", "--samples", "20", "--epsilon", "0.1", "--attack", "fgsm")
    assert '"fgsm"' in plain.run(plain.root / "bin/tla-evaluate", *chosen)


def test_the_templates_are_in_it(plain: Environment) -> None:
    files = {path.relative_to(ROOT) for path in (ROOT / "trl").rglob("*") if path.is_file()}
    wanted = {path for path in files if "__pycache__" not in path.parts}
    assert Path("trl/report/template.html") in wanted
    assert [path for path in sorted(wanted) if not (plain.packages / path).is_file()] == []


def test_the_extra_brings_the_pipeline(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "pipeline")
    assert "--methods" in environment.python("-m", "flows.full", "--help")
