"""What MLflow says of an evaluation: its budget, in a run of its own; names that tell runs apart; the comparison."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from mlflow import MlflowClient

from tasks.record import record
from tasks.stage import run_stage
from tests.helpers.store import make_project, make_store, runs, steps
from tests.helpers.synthetic_results import write_model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def project(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of two models in the record."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("trl.report.save_figures", lambda results, folder: [])  # they take seconds
    make_project(tmp_path, store, ["um", "at"])
    for method in ("um", "at"):
        write_model(Path(f"metrics/digits/{method}-0"), method, 0)
    assert run() == 0
    return tmp_path


def run() -> int:
    return run_stage(record, per_model=False, arguments=[], as_written=True)


def edit(file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    for method in ("um", "at"):
        path = Path(f"metrics/digits/{method}-0", file)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def weaker(content: dict[str, Any]) -> None:
    """An evaluation with less steps, and what it found."""
    content["settings"]["attacks"]["pgd"]["options"]["steps"] = 3
    content["robust"]["worst"]["accuracy"] = 0.9


def test_budgets_are_parameters(project: Path) -> None:
    params = runs(project)[0].data.params
    expected = {"attack.attacks.pgd.steps": "40", "attack.precision": "fp32", "attack.samples": "597"}
    expected |= {"attack.epsilon": "0.2", "detect.attacks.cw.steps": "20", "detect.epsilon": "0.2"}
    assert expected.items() <= params.items()


def test_a_changed_budget_is_a_run_of_its_own_with_a_name_that_says_so(project: Path) -> None:
    before = {r.info.run_id: r.data.metrics for r in runs(project)}
    edit("attack.json", weaker)
    assert run() == 0
    assert {r.info.run_id: r.data.metrics for r in runs(project)}.items() > before.items()
    *_, new = runs(project)
    assert len(runs(project)) == 4
    assert new.info.run_name == "digits/at-0 (attack.attacks.pgd.steps=3)"
    assert (new.data.metrics["robust/worst"], new.info.status) == (0.9, "FINISHED")
    assert steps(project, new, "train/loss") == [*range(1, 41)]
    assert run() == 0  # recording again adds nothing
    assert (len(runs(project)), len(runs(project, "pipeline"))) == (4, 2)


def test_names_tell_of_added_and_removed_attacks_and_not_of_too_much(project: Path) -> None:
    def other(content: dict[str, Any]) -> None:
        attacks = content["settings"]["attacks"]
        attacks["square"] = {"name": "square", "options": {"queries": 10}}
        del attacks["fgsm"]

    edit("attack.json", other)
    assert run() == 0
    assert runs(project)[-1].info.run_name == "digits/at-0 (+attack.attacks.square, -attack.attacks.fgsm)"

    def many(content: dict[str, Any]) -> None:
        for spec in content["settings"]["attacks"].values():
            spec["options"] = dict.fromkeys(spec["options"], 7)

    edit("attack.json", many)
    assert run() == 0
    name = runs(project)[-1].info.run_name
    assert name.startswith("digits/at-0 (attack.attacks.bim.steps=7, ")
    assert name.endswith(", 2 more)")


def test_the_parent_run_holds_the_comparison_under_a_name_that_says_what_is_compared(project: Path) -> None:
    (parent,) = runs(project, "pipeline")
    assert parent.info.run_name == "digits: um, at; seed 0"
    worst = {r.data.params["method"]: r.data.metrics["robust/worst"] for r in runs(project)}
    assert {f"{method}/robust/worst": value for method, value in worst.items()}.items() <= parent.data.metrics.items()
    assert parent.data.params["attack.attacks.pgd.steps"] == "40"
    assert "| method | clean |" in parent.data.tags["mlflow.note.content"]
    edit("attack.json", weaker)
    assert run() == 0
    assert runs(project, "pipeline")[-1].info.run_name == "digits: um, at; seed 0 (attack.attacks.pgd.steps=3)"


def test_a_comparison_that_was_cut_short_is_recorded_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MlflowClient, *arguments: object) -> None:
        raise OSError("No space left on device")

    edit("attack.json", weaker)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_dict", full)
        assert run() == 1
    assert run() == 0
    whole = [r for r in runs(project, "pipeline") if "trl.pipeline" in r.data.tags]
    assert [r.info.status for r in whole] == ["FINISHED", "FINISHED"]


def test_the_leaderboard_opens_with_columns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    address = capsys.readouterr().out.split()[-1]
    query = {name: value[0] for name, value in parse_qs(address.partition("?")[2]).items()}
    assert query == {"workflowType": "machine_learning", "viewStateShareKey": "leaderboard"}
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    tags = client.get_experiment(runs(project)[0].info.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{query['viewStateShareKey']}"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`robust/worst`", False)
    columns = view["selectedColumns"]
    assert columns[:2] == ["metrics.`clean/accuracy`", "metrics.`robust/worst`"]
    assert view["columnOrder"][2:] == columns
    metrics = {name for r in runs(project) for name in r.data.metrics}
    assert {name.removeprefix("metrics.`").removesuffix("`") for name in columns} < metrics


def test_files_of_an_earlier_version_are_recorded_as_they_are(project: Path) -> None:
    shutil.rmtree("metrics/digits/at-0")
    write_model(Path("metrics/digits/at-0"), "at", 0)
    for file in ("attack.json", "detect.json"):
        edit(file, lambda content: content.pop("settings"))
    assert run() == 0
    *_, new = runs(project)
    assert new.data.params["attack.epsilon"] == "0.2"
    assert "attack.precision" not in new.data.params
