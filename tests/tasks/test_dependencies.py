"""A stage depends on the code that it runs: a change there reruns it, and one elsewhere does not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.dependencies import code_of, modules_of, updated
from trl.config import load_params

ROOT = Path(__file__).parents[2]
RECIPE = load_params(ROOT / "params.yaml").recipes["digits"]
ATTACK = "from trl.attacks.fgsm import fgsm as mine\n"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code, the graph and what ran, without results."""
    for name in ("trl", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "dvc.lock", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def add_attack(project: Path) -> None:
    """A new attack: a file, and a line in the registry."""
    (project / "trl/attacks/mine.py").write_text(ATTACK)
    registry = project / "trl/attacks/registry.py"
    registry.write_text(registry.read_text().replace('"fgsm":', '"mine": "trl.attacks.mine:mine",\n        "fgsm":'))


def test_dvc_yaml_is_right() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert updated(text, load_params(ROOT / "params.yaml").recipes.values()) == text


def test_the_code_of_one_method_is_its_own() -> None:
    sections = ("model", "train", "methods")
    tla, at = (modules_of("train", [RECIPE], sections, method) for method in ("tla", "at"))
    assert tla - at == {"trl.objectives.tla"}
    assert {"trl.training.train", "trl.models.mlp", "trl.attacks.pgd"} < at & tla
    assert not any(module.startswith("trl.attacks.fab") for module in tla)


def test_the_models_that_methods_name_are_code_too() -> None:
    network = RECIPE.model.model_copy(update={"name": "strided_cnn", "options": {}})
    method = RECIPE.methods["at"].model_copy(update={"model": network})
    recipe = RECIPE.model_copy(update={"methods": {"um": RECIPE.methods["um"], "at": method}})
    networks = {"trl.models.mlp", "trl.models.strided_cnn"}
    for stage, name, expected in (
        ("train", "at", {"trl.models.strided_cnn"}),
        ("train", "um", {"trl.models.mlp"}),
        ("attack", "", networks),
    ):
        assert modules_of(stage, [recipe], ("model",), name) & networks == expected


@pytest.mark.parametrize(
    ("stage", "inside", "outside"),
    [
        ("prepare", "trl/data/digits.py", "trl/attacks/pgd.py"),
        ("train", "trl/common/seeds.py", "trl/attacks/fab.py"),
        ("train", "trl/results/train.py", "trl/results/attack.py"),
        ("train", "trl/results/base.py", "trl/results/detect.py"),
        ("attack", "trl/attacks/square.py", "trl/objectives/tla.py"),
        ("detect", "trl/detectors/lid.py", "trl/training/loop.py"),
        ("report", "trl/report/page.py", "trl/attacks/pgd.py"),
    ],
)
def test_what_belongs_to_a_stage(stage: str, inside: str, outside: str) -> None:
    params = ["recipes.${item.recipe}." + section for section in ("data", "model", "train", "attack", "detect")]
    read = {"prepare": params[:1], "train": params[1:3], "attack": params[3:4], "detect": params[4:], "report": []}
    found = code_of(stage, [RECIPE], {"stages": {stage: {"params": read[stage]}}})
    assert f"tasks/{stage}.py" in found
    assert inside in found
    assert outside not in found
    assert not any(path.endswith(("__init__.py", "s/registry.py")) for path in found)


def test_a_new_attack_is_a_dependency_once_a_recipe_names_it(project: Path) -> None:
    add_attack(project)
    assert run(project, "tasks.dependencies", "--check").stdout == "dvc.yaml: right as it is\n"
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("        fgsm: {}\n", "        fgsm: {}\n        mine: {}\n", 1))
    unused = run(project, "tasks.attack", "--method", "at")
    expected = "error: dvc.yaml: stage attack depends on trl/attacks/mine.py, too; run python -m tasks.dependencies\n"
    assert (unused.returncode, unused.stderr) == (1, expected)
    assert run(project, "tasks.dependencies", "--check").returncode == 1
    assert run(project, "tasks.dependencies").returncode == 0
    assert run(project, "tasks.dependencies", "--check").returncode == 0
    before, after = ((folder / "dvc.yaml").read_text().splitlines() for folder in (ROOT, project))
    assert [line for line in after if line not in before] == ["      - trl/attacks/mine.py"]


@pytest.mark.e2e
def test_what_dvc_runs_again(project: Path) -> None:
    def changed() -> dict[str, set[str]]:
        """By stage, the files of code that DVC sees as changed."""
        found: dict[str, set[str]] = {}
        for stage, parts in json.loads(run(project, "dvc", "status", "--json").stdout).items():
            deps = [path for part in parts if isinstance(part, dict) for path in part.get("changed deps", ())]
            found[stage] = {path for path in deps if path.startswith("trl")}
        return found

    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, check=True)
    before = changed()
    add_attack(project)
    assert changed() == before
    append(project / "trl/common/seeds.py", "\n# changed\n")
    again = [stage for stage, files in changed().items() if "trl/common/seeds.py" in files]
    assert {stage for stage in again if "train" in stage} == {f"train@digits-{m}-0" for m in ("um", "at", "alp", "tla")}
