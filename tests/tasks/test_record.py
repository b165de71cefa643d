"""What `python -m tasks.record` leaves in a real store."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.record import record
from tasks.stage import run_stage
from tests.helpers.synthetic_results import write_certificates, write_model

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of `um`, while `at` has only been trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("trl.report.save_figures", lambda results, folder: [])  # they take seconds
    params = yaml.safe_load(PARAMS.read_text())
    Path("params.yaml").write_text(
        yaml.safe_dump(params | {"recipe": "digits", "methods": ["at", "um"], "seeds": [0], "certify": ["um"]})
    )
    for folder in ("data", "report"):
        Path("outputs/digits", folder).mkdir(parents=True)
    Path("outputs/digits/data/data.json").write_text(json.dumps({"sha256": "0" * 64}))
    for method in ("um", "at"):
        write_model(Path(f"metrics/digits/{method}-0"), method, 0)
    write_certificates(Path("metrics/digits"), ["um"])
    Path("metrics/digits/at-0/attack.json").rename("attack.json")
    return tmp_path


def run() -> int:
    return run_stage(record, per_model=False, arguments=[], as_written=True)


def runs(kind: str) -> dict[str, Run]:
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {r.info.run_name: r for r in client.search_runs(experiments, f"tags.`trl.kind` = '{kind}'")}


def test_a_model_without_all_results_keeps_no_other_from_the_record(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 1
    missing = "metrics/digits/at-0/attack.json: No such file or directory; run the attack stage (`dvc repro`)"
    assert f"error: {missing}\n" in capsys.readouterr().err
    assert list(runs("model")) == ["digits/um-0"]
    assert runs("pipeline") == {}

    shutil.move("attack.json", "metrics/digits/at-0/attack.json")
    assert run() == 0
    (parent,) = runs("pipeline").values()
    found = runs("model")
    assert found.keys() == {"digits/um-0", "digits/at-0"}
    assert found["digits/um-0"].data.metrics["certified/0.5"] == pytest.approx(0.75)
    assert "certified/0.5" not in found["digits/at-0"].data.metrics
    for name, model in found.items():
        assert model.data.tags["mlflow.parentRunId"] == parent.info.run_id
        stored = json.loads(Path("metrics", name, "attack.json").read_text())
        assert model.data.metrics["robust/worst"] == stored["robust"]["worst"]["accuracy"]
        assert len(MlflowClient().get_metric_history(model.info.run_id, "train/loss")) == 40
        assert len(MlflowClient().get_metric_history(model.info.run_id, "robust/worst")) == 1  # once, in two commands


@pytest.mark.parametrize(("gone", "stage"), [("data", "prepare"), ("report", "report")])
def test_a_clone_without_outputs_is_told_what_to_run_and_the_store_is_not_blamed(
    project: Path, capsys: pytest.CaptureFixture[str], gone: str, stage: str
) -> None:
    shutil.move("attack.json", "metrics/digits/at-0/attack.json")
    shutil.rmtree(f"outputs/digits/{gone}")
    assert run() == 1
    lines = "".join(capsys.readouterr()).splitlines()
    [said] = [line for line in lines if line.startswith(("error", "warning"))]
    assert said.startswith(f"error: outputs/digits/{gone}")
    assert f"run the {stage} stage" in said
