"""A training's run in MLflow: one, however often training is interrupted or the store is away, and it says its end."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import ViewType

from tasks.prepare import prepare
from tasks.record import record
from tasks.runs import dvc_hash
from tasks.stage import Stage, run_stage
from tasks.train import train_model
from tests.helpers import ROOT
from tests.helpers.store import edit_params, make_project, make_store, runs, steps
from tests.helpers.synthetic_results import write_model
from trl.config import load_params
from trl.models import weights_sha256
from trl.training import loop

AWAY = "sqlite:////proc/nowhere/mlflow.db"  # cannot be opened, and fails at once


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an empty store and prepared data."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = make_store(tmp_path_factory.mktemp("store"))
        make_project(folder, store, ["um"])
        patch.chdir(folder)
        assert run_stage(prepare, per_model=False, arguments=[]) == 0
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TRL_CHECKPOINT_SECONDS", "0")
    monkeypatch.setenv("TRL_DEVICE", "cpu")
    monkeypatch.setattr("trl.report.save_figures", lambda results, folder: [])  # they take seconds
    return tmp_path


def train() -> int:
    return run_stage(train_model, per_model=True, arguments=["--method", "um"])


def statuses(folder: Path) -> list[str]:
    return [run.info.status for run in runs(folder)]


def evaluate(folder: Path) -> None:
    """Results of the stages after training, made up."""
    trained = folder / "metrics/digits/um-0"
    kept = {name: (trained / name).read_text() for name in ("train.json", "training.csv")}
    write_model(trained, "um", 0)
    for name, text in kept.items():
        (trained / name).write_text(text)


def test_a_training_that_diverges_has_failed(project: Path) -> None:
    edit_params(project, lambda p: p["recipes"]["digits"]["train"]["optimizer"].update(lr=1e30))
    assert train() == 1
    assert statuses(project) == ["FAILED"]


def test_an_interrupted_training_is_killed_and_resumes_its_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_params(project, lambda p: p["recipes"]["digits"]["train"].update(epochs=4))

    def interrupt(row: dict, epochs: int) -> str:
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_line", interrupt)
        assert train() == 130
    assert statuses(project) == ["KILLED"]
    assert train() == 0
    (run,) = runs(project)
    assert (run.info.status, steps(project, run, "train/loss")) == ("FINISHED", [1, 2, 3, 4])
    evaluate(project)
    assert run_stage(record, per_model=False, arguments=[], as_written=True) == 0
    assert statuses(project) == ["FINISHED"]


@pytest.mark.parametrize("back", ["for the end of training", "for the record"])
def test_a_store_that_goes_away_and_comes_back_has_one_run(
    project: Path, back: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes after the first epoch of a training that is interrupted and resumed."""
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # opens the file anew each time
    store, elsewhere = project / "mlflow.db", project / "elsewhere.db"
    plain = loop._line

    def goes(row: dict, epochs: int) -> str:
        if row["epoch"] == 1:
            store.rename(elsewhere)
            store.mkdir()
        return plain(row, epochs)

    def returns(*weights: Path) -> str:
        store.rmdir()
        elsewhere.rename(store)
        return weights_sha256(*weights)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_line", goes)
        if back == "for the end of training":
            patch.setattr("trl.models.weights_sha256", returns)
        assert train() == 0
    if back == "for the record":
        assert len(json.loads((project / "metrics/digits/um-0/train.json").read_text())["fingerprint"]) == 12
        returns(project / "outputs/digits/um-0/model")
        assert statuses(project) == ["RUNNING"]
    evaluate(project)
    assert run_stage(record, per_model=False, arguments=[], as_written=True) == 0
    (run,) = runs(project)
    assert (run.info.status, steps(project, run, "train/loss")) == ("FINISHED", [1, 2])
    assert "robust/worst" in run.data.metrics


def test_a_training_without_a_store_resumes_no_second_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(row: dict, epochs: int) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_line", fail)
        assert train() == 130
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", AWAY)
        assert train() == 0
    evaluate(project)
    assert run_stage(record, per_model=False, arguments=[], as_written=True) == 0
    assert statuses(project) == ["FINISHED"]


def test_a_repeated_training_adds_no_run(project: Path) -> None:
    assert train() == 0
    before = [run.info.run_id for run in runs(project)]
    shutil.rmtree("outputs/digits/um-0")
    assert train() == 0
    assert [run.info.run_id for run in runs(project, view=ViewType.ALL)] == before
    assert statuses(project) == ["FINISHED"]


@pytest.mark.e2e
def test_signals_end_the_run_at_once_or_when_results_are_recorded_next(project: Path) -> None:
    edit_params(project, lambda p: p["recipes"]["digits"]["train"].update(epochs=100_000))
    command = [sys.executable, "-m", "tasks.train", "--method", "um"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TRL_DEVICE": "cpu", "TRL_CHECKPOINT_SECONDS": "0"}
    for number, status in ((signal.SIGTERM, "KILLED"), (signal.SIGKILL, "RUNNING")):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as training:
            assert training.stdout is not None
            assert any(line.startswith("epoch ") for line in training.stdout)
            assert statuses(project) == ["RUNNING"]
            assert run_stage(record, per_model=False, arguments=[], as_written=True) == 1  # results are missing
            assert statuses(project) == ["RUNNING"]  # it lives
            training.send_signal(number)
            training.stdout.read()
        assert statuses(project) == [status]
    assert run_stage(record, per_model=False, arguments=[], as_written=True) == 1
    assert statuses(project) == ["KILLED"]


@pytest.mark.parametrize(
    "content", ["", "schema: '2.0'\nstages:\n", "stages: [", "stages:\n  prepare@digits:\n    outs:\n"]
)
def test_a_lock_that_dvc_is_writing_tells_no_hash(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Stage(load_params(ROOT / "params.yaml", as_written=True), "digits", "um", 0)
    assert dvc_hash(stage) == ""
    Path("dvc.lock").write_text(content)
    assert dvc_hash(stage) == ""
    Path("dvc.lock").write_text("stages:\n  prepare@digits:\n    outs:\n    - {path: a, md5: 1f}\n")
    assert dvc_hash(stage) == "1f"
