"""A stage notices what changed while it ran, of all that dvc.yaml says it depends on, and of nothing else."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tasks.inputs import Inputs, inputs_of
from tests.helpers import ROOT
from trl.common.errors import TrlError

ITEM = {"recipe": "digits", "method": "tla", "seed": 0, "name": "um_at_tla", "proxy": "kde"}
DATA = Path("outputs/digits/data/data.json")
CODE = "trl/training/loop.py"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """A training that has just started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.inputs.PATIENCE", 0.01)
    shutil.copytree(ROOT / "trl", "trl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, ".")
    DATA.parent.mkdir(parents=True)
    DATA.write_text("{}")
    inputs = inputs_of("train", ITEM, Path("params.yaml").read_text())
    inputs.check()
    return inputs


def edit(old: str, new: str, path: str = "params.yaml") -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("epochs: 60", "epochs: 2", ["recipes.digits.train.epochs"]),
        ("epsilon: 0.2}", "epsilon: 0.3, norm: l2}", ["recipes.digits.threat.norm", "recipes.digits.threat.epsilon"]),
        ("margin: 0.05, ", "", ["recipes.digits.methods.tla.margin"]),
        ("width: 256", "width: 256, new: 1", ["recipes.digits.model.new"]),
        ("recipes:", "recipe:", [f"recipes.digits.{s}" for s in ("model", "threat", "train", "methods.tla")]),
    ],
)
def test_a_changed_parameter_is_named_by_its_key(started: Inputs, old: str, new: str, named: list[str]) -> None:
    text = Path("params.yaml").read_text()
    edit(old, new)
    with pytest.raises(TrlError) as error:
        started.check()
    said = str(error.value)
    assert said.startswith(f"{', '.join(f'params.yaml: {key}' for key in named)} changed while this stage ran")
    assert "\n" not in said
    Path("params.yaml").write_text(text)
    started.check()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seeds: [0]", "seeds: [0, 1]"),  # which models there are
        ("alp: {weight: 0.5}", "alp: {weight: 1}"),  # another method
        ("validation: 150", "validation: 151"),  # another stage's
        ("epochs: 60", "epochs: 60 # a comment"),
        ("      attacks:\n        fgsm: {}", "      attacks:\n        fgsm: {norm: 1}"),
    ],
)
def test_what_the_stage_does_not_read_may_change(started: Inputs, old: str, new: str) -> None:
    edit(old, new)
    started.check()


def test_changed_code_and_data_are_named(started: Inputs) -> None:
    edit("import", "import sys, ", CODE)
    DATA.write_text("{ }")
    with pytest.raises(TrlError, match=re.escape(f"outputs/digits/data, {CODE} changed while")):
        started.check()


def test_code_that_is_written_anew_is_no_change_and_code_that_is_gone_is_one(started: Inputs) -> None:
    Path(CODE).touch()
    edit("import", "import sys, ", "trl/attacks/square.py")  # no training runs it
    started.check()
    Path(CODE).unlink()
    with pytest.raises(TrlError, match=CODE):
        started.check()


def test_a_file_that_an_editor_is_writing_is_read_again(started: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text[:300])
    monkeypatch.setattr("tasks.inputs.time.sleep", lambda _: Path("params.yaml").write_text(text))
    started.check()


def test_every_stage_watches_all_that_dvc_records(started: Inputs) -> None:
    graph = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    for name, stage in graph.items():
        inputs = inputs_of(name, ITEM, "")
        assert len(inputs.keys) == len(stage["params"])
        assert len(inputs.files) == len(stage["deps"])
        assert "${" not in "".join([*inputs.keys, *inputs.files])


def test_without_a_graph_nothing_is_recorded_and_nothing_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs_of("train", ITEM, "a: 1").check()
