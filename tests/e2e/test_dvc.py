"""The pipeline by `dvc repro`, with its record in MLflow: what runs, what is skipped, what a failure looks like."""

import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from tests.helpers.project import Project
from tests.helpers.synthetic_results import write_model

pytestmark = pytest.mark.e2e


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def record(project: Project) -> None:
    project.shell("python", "-m", "tasks.record")


def artifacts(project: Project, run: Run, folder: str) -> set[str]:
    client = project.client()
    return {Path(a.path).name for a in client.list_artifacts(run.info.run_id, folder)}


@pytest.fixture(scope="module")
def with_data(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("prepared"))
    project.shell("python", "-m", "tasks.prepare")
    return project


@pytest.fixture
def prepared(with_data: Project) -> Iterator[Project]:
    """A project with data, for tests that leave it so; it gets its parameters back."""
    before = (with_data.root / "params.yaml").read_text()
    yield with_data
    (with_data.root / "params.yaml").write_text(before)


def models(*names: str, stages: tuple[str, ...] = ("train", "attack", "detect")) -> set[str]:
    return {f"{stage}@digits-{name}" for stage in stages for name in names}


def test_reruns_do_only_what_changed_and_mlflow_has_it_all(project: Project) -> None:
    first = project.shell("dvc", "repro")
    assert ran(first) == {"prepare@digits", "report@digits"} | models("um-0", "tla-0")
    table = [line.split() for line in first.splitlines()]
    header = next(line for line in table if line[:2] == ["method", "clean"])
    assert {"fgsm", "pgd", "worst"} <= set(header)
    assert [line[0] for line in table if line and line[0] in ("um", "tla")] == ["um", "tla"]
    assert (project.root / "outputs/digits/report/index.html").stat().st_size > 100_000

    # Nothing to do, and quickly so.
    assert "up to date" in project.shell("dvc", "status")
    assert ran(project.shell("dvc", "repro")) == set()

    # Only the curves are recorded live; the last line says how to record the rest.
    assert "MLflow: `python -m tasks.record` adds these results" in first
    assert project.runs("pipeline") == []
    for row in project.runs("model"):
        assert {name.partition("/")[0] for name in row.data.metrics} == {"train", "val"}
        assert row.info.status == "FINISHED"

    # The record: a row per model with the same metrics, and a parent.
    record(project)
    rows, parents = project.runs("model"), project.runs("pipeline")
    assert {row.info.run_name for row in rows} == {"digits/um-0", "digits/tla-0"}
    names = [set(row.data.metrics) for row in rows]
    shared = {
        "clean/accuracy",
        "robust/fgsm",
        "robust/pgd",
        "robust/worst",
        "detect/auc/pgd",
        "val/robust",
        "train/loss",
    }
    assert all(shared <= each for each in names)
    assert all(row.info.status == "FINISHED" for row in rows)
    assert {row.data.tags["mlflow.parentRunId"] for row in rows} == {parents[0].info.run_id}
    tla = next(row for row in rows if row.data.params["method"] == "tla")
    assert tla.data.params["objective.lambda1"] == "0.5"
    assert tla.inputs.dataset_inputs[0].dataset.name == "digits"
    assert tla.inputs.dataset_inputs[0].tags[0].value.endswith(".dir")
    assert "roc.png" in artifacts(project, tla, "figures")
    assert "model.safetensors" in artifacts(project, tla, "model")
    assert "index.html" in artifacts(project, parents[0], "report")
    curve = project.client().get_metric_history(tla.info.run_id, "train/loss")
    assert [point.step for point in curve] == [1, 2]

    # A lost store is complete again.
    before = {row.info.run_name: (row.data.metrics, row.data.params) for row in rows}
    (project.root / "mlflow.db").unlink()
    shutil.rmtree(project.root / "mlartifacts")
    project.store = "/./mlflow.db"  # under its old name MLflow would go on reading the deleted file here
    record(project)
    again = project.runs("model")
    assert {row.info.run_name: (row.data.metrics, row.data.params) for row in again} == before
    assert "index.html" in artifacts(project, project.runs("pipeline")[0], "report")
    record(project)  # and recording twice adds nothing
    assert (len(project.runs("model")), len(project.runs("pipeline"))) == (2, 1)

    # A changed knob of one method reruns that method; a new seed runs alone, and a new attack trains nothing.
    project.set(lambda p: p["recipes"]["digits"]["methods"]["tla"].update(lambda1=0.25))
    assert ran(project.shell("dvc", "repro")) == models("tla-0") | {"report@digits"}
    record(project)
    project.set(lambda p: p.update(methods=["tla"], seeds=[0, 1]))
    project.set(lambda p: p["recipes"]["digits"]["attack"].update(samples=50))
    assert ran(project.shell("dvc", "repro")) == models("tla-1") | models("tla-0", stages=("attack", "detect")) | {
        "report@digits"
    }
    record(project)
    assert len(project.runs("pipeline")) == 3
    assert len(project.runs("model")) == 5  # TLA with seed 0: two models, one of them under two budgets


def assert_one_line(output: str, message: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert re.search(message, errors[0])
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        (lambda d: d["threat"].update(epsilon=-1), "prepare", r"recipes.digits.threat.epsilon: should be greater than"),
        (lambda d: d["train"]["optimizer"].update(lr=1e30), "train", r"training diverged: loss or weights are NaN"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(prepared: Project, change: Any, stage: str, message: str) -> None:
    prepared.set(lambda p: change(p["recipes"]["digits"]))
    arguments = ["--method", "tla"] if stage == "train" else []
    assert_one_line(prepared.shell("python", "-m", f"tasks.{stage}", *arguments, fails=True), message)


def keep(recipe: dict[str, Any]) -> None:
    """Changes nothing."""


@pytest.mark.parametrize(
    ("change", "command", "message"),
    [
        (lambda d: d["data"].update(validation=5000), "prepare", r"validation.*5,?000"),
        (lambda d: d["train"].update(batch_size=5000), "train --method tla", r"batch_size: 5000 is more than the 1197"),
        (lambda d: d["methods"]["tla"].update(pool=5000), "train --method tla", r"pool is 5000, more than the 1197"),
        (keep, "train --method none", r"unknown method 'none'; recipes.digits.methods has um"),
        (keep, "prepare --recipe svhn", r"unknown recipe 'svhn'; params.yaml has digits"),
        (keep, "train --recipe mnist --method tla", r"outputs/mnist/data.*(prepare|cannot be read)"),
        (keep, "attack --method tla", r"outputs/digits/tla-0/model.*train the model first"),
    ],
)
def test_wrong_values_unknown_names_and_missing_inputs_are_one_line(
    prepared: Project,
    change: Any,
    command: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `python -m` runs them, but in this process, which has PyTorch loaded."""
    prepared.set(lambda p: change(p["recipes"]["digits"]))
    stage, *arguments = command.split()
    monkeypatch.chdir(prepared.root)
    monkeypatch.setattr(sys, "argv", [stage, *arguments])
    monkeypatch.delitem(sys.modules, f"tasks.{stage}", raising=False)  # runpy warns of what is imported already
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"tasks.{stage}", run_name="__main__", alter_sys=True)
    assert end.value.code == 1
    assert_one_line("".join(capsys.readouterr()), message)


def test_a_broken_store_never_costs_results(prepared: Project) -> None:
    output = prepared.shell(
        "python",
        "-m",
        "tasks.train",
        "--method",
        "um",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )
    assert output.count("warning: MLflow was not updated") >= 1
    assert (prepared.root / "outputs/digits/um-0/model/model.safetensors").exists()

    prepared.set(lambda p: p.update(methods=["um"]))
    command = ("python", "-m", "tasks.record")
    missing = "error: metrics/digits/um-0/attack.json: No such file or directory; run the attack stage"
    assert missing in prepared.shell(*command, fails=True)
    write_model(prepared.root / "metrics/digits/um-0", "um", 0)
    recorded = prepared.shell(*command, fails=True, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "error: MLflow is not complete" in recorded
