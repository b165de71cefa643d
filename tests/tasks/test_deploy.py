"""Deployment against a real MLflow store; only failures are staged, by a client that breaks off at one of its calls."""

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import tasks.deploy
from tasks.deploy import CHAMPION, FORMER, deploy
from tasks.paths import RecipePaths
from tasks.prepare import prepare
from tasks.stage import run_stage
from tasks.store import client_and_experiment
from tests.helpers.deployable import rewrite, write_deployable
from trl.detection.guard import Guard

PARAMS = Path(__file__).parents[2] / "params.yaml"
NAME = "trl-detector"
STEPS = [
    "create_logged_model",
    "log_model_artifacts",
    "create_registered_model",
    "create_model_version",
    "set_logged_model_tags",
    "set_registered_model_alias",
    "log_outputs",
    "finalize_logged_model",
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `tla`, `at` and `um` are trained, best first by `robust`, last by `auc`; an empty store."""
    root = tmp_path_factory.mktemp("template")
    with working_in(root):
        shutil.copy(PARAMS, "params.yaml")
        configure(methods=["um", "at", "tla"], seeds=[0])
        assert run_stage(prepare, per_model=False, arguments=["--recipe", "digits"]) == 0
        write_deployable("tla", robust=0.5, auc=0.6)
        write_deployable("at", robust=0.4, auc=0.7)
        write_deployable("um", robust=0.0, auc=0.8)
        client().search_registered_models()  # which makes the store's tables
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the template to work in."""
    with working_in(shutil.copytree(template, tmp_path / "project")) as root:
        yield root


@pytest.fixture(scope="module", params=["nothing", "a champion"])
def registered(request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that many tests share, since each leaves it as it was, in which something is deployed already."""
    with working_in(shutil.copytree(template, tmp_path_factory.mktemp("registered") / "project")) as root:
        if request.param == "a champion":
            assert run("--method", "at") == 0
    return root


@contextmanager
def working_in(root: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        yield root


def configure(**values: Any) -> None:
    path = Path("params.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"recipe": "digits"} | values))


def run(*arguments: str) -> int:
    return run_stage(deploy, per_model="optional", arguments=list(arguments))


def client() -> MlflowClient:
    return MlflowClient()


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user sees of a failure."""
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if " INFO mlflow." not in line]  # which a command does not log
    assert len(lines) == 1, said
    return lines[0]


def registry(name: str = NAME) -> dict[str, str]:
    """Version → method, in a registered model, with a star at the champion."""
    found = client().search_registered_models(f"name = '{name}'")
    champion = found[0].aliases.get(CHAMPION) if found else None
    versions = client().search_model_versions(f"name = '{name}'")
    return {str(v.version): v.tags["trl.method"] + "*" * (v.version == champion) for v in versions}


def everything() -> Any:
    """What can be seen of a store: registered models, versions, logged models that are not deleted."""
    registered = [(m.name, m.aliases, m.tags) for m in client().search_registered_models()]
    versions = [(v.name, v.version, v.tags) for v in client().search_model_versions()]
    experiments = [e.experiment_id for e in client().search_experiments()]
    logged = [(m.model_id, str(m.status)) for m in client().search_logged_models(experiments)]
    return sorted(registered, key=str), sorted(versions, key=str), sorted(logged)


def test_the_best_is_deployed_and_only_a_better_one_takes_its_place(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--method", "at") == 0
    said = capsys.readouterr().out
    assert "trl-detector version 1 registered: digits at-0 with gaussian, robust 0.400 on validation images\n" in said
    assert "champion: version 1: digits at-0" in said
    assert f"mlflow models serve -m models:/{NAME}@champion --env-manager local -p 5001\n" in said
    assert registry() == {"1": "at*"}

    assert run("--method", "um") == 0  # worse: registered, but not served
    said = capsys.readouterr().out
    assert "version 2 registered: digits um-0 with gaussian, robust 0.000" in said
    assert "champion: version 1: digits at-0 with gaussian, robust 0.400" in said
    assert registry() == {"1": "at*", "2": "um"}

    assert run() == 0  # the best of all, and better
    said = capsys.readouterr().out
    assert "version 3 registered: digits tla-0 with gaussian, robust 0.500" in said
    assert "champion: version 3; before, version 1: digits at-0 with gaussian, robust 0.400" in said
    assert registry() == {"1": "at", "2": "um", "3": "tla*"}

    before = everything()
    for arguments in ([], ["--method", "tla", "--seed", "0"], ["--method", "at"]):
        assert run(*arguments) == 0
        assert "is registered already; nothing was changed" in capsys.readouterr().out
    assert everything() == before
    client().delete_registered_model_alias(NAME, CHAMPION)
    assert run() == 0
    assert "champion: none; in MLflow, give the alias champion" in capsys.readouterr().out

    tags = client().get_model_version(NAME, "3").tags
    weights = json.loads(Path("metrics/digits/tla-0/train.json").read_text())["weights"]
    expected = {"recipe": "digits", "data": "digits", "method": "tla", "seed": "0", "weights": weights}
    expected |= {"figure": "robust", "value": "0.5", "threat": "linf 0.2", "detector": "gaussian", "former": "1"}
    assert {f"trl.{key}": value for key, value in expected.items()}.items() <= tags.items()


def test_equal_figures_leave_the_champion_where_it_is(project: Path) -> None:
    write_deployable("tla", 1, robust=0.5)
    assert run("--method", "tla", "--seed", "1") == 0
    assert run("--method", "tla", "--seed", "0") == 0
    assert [name for name in registry().values() if name.endswith("*")] == ["tla*"]
    assert client().get_model_version_by_alias(NAME, CHAMPION).tags["trl.seed"] == "1"


def test_the_model_has_one_run_and_its_page_shows_the_deployment(project: Path) -> None:
    assert run() == 0
    assert run("--method", "um") == 0
    version = client().get_model_version_by_alias(NAME, CHAMPION)
    found = client().get_run(version.run_id)
    assert found.data.params["method"] == "tla"
    assert found.data.tags["trl.weights"] == version.tags["trl.weights"]
    assert found.info.status == "FINISHED"
    (output,) = found.outputs.model_outputs
    logged = client().get_logged_model(output.model_id)
    assert logged.source_run_id == version.run_id
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": version.version}]


@pytest.mark.parametrize("change", ["figure", "threat", "by hand"])
def test_what_cannot_be_compared_is_refused(change: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if change == "by hand":
        client().create_registered_model(NAME)
        client().create_model_version(NAME, str(project))
        client().set_registered_model_alias(NAME, CHAMPION, "1")
        words = "was not registered by this command and has no figure to beat"
    else:
        assert run("--method", "at") == 0
        if change == "figure":
            configure(deploy={"figure": "auc"})
            words = "was chosen by robust on digits under linf 0.2, this model by auc on digits under linf 0.2"
        else:
            rewrite(Path("metrics/digits/tla-0/detect.json"), epsilon=0.3)
            words = "was chosen by robust on digits under linf 0.2, this model by robust on digits under linf 0.3"
    before = everything()
    capsys.readouterr()
    assert run("--method", "tla") == 1
    error = only_error(capsys)
    assert error.startswith(f"error: {NAME}: its champion, version 1, {words}")
    assert "set another deploy.name in params.yaml" in error
    assert everything() == before

    configure(deploy={"name": "other", "figure": "auc"})
    assert run() == 0
    assert registry("other") == {"1": "um*"}


def test_what_is_missing_or_does_not_belong_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = RecipePaths("digits").model("tla", 0)
    figures = paths.metrics / "detect.json"

    def refused(*words: str) -> None:
        assert run() == 1
        error = only_error(capsys)
        assert error.startswith("error: ")
        assert all(word in error for word in words), error
        assert registry() == {}

    kept = figures.read_text()
    detect = json.loads(kept)
    gaussian = detect["detectors"]["gaussian"] | {"threshold": 0.0}
    rewrite(figures, detectors=detect["detectors"] | {"gaussian": gaussian})
    refused("metrics/digits/tla-0: measured with another detector", "dvc repro")
    rewrite(figures, validation={"auc": 1.0})
    refused("tla-0/detect.json: validation.adaptive_auc: is missing; run the detect stage")
    rewrite(figures, validation=None)
    refused("tla-0/detect.json: validation: ", "run the detect stage")
    figures.write_text(kept[:100])
    refused("tla-0/detect.json: ", "run the detect stage")
    figures.unlink()
    refused("tla-0/detect.json: No such file or directory; run the detect stage")
    figures.write_text(kept)
    trained = paths.metrics / "train.json"
    rewrite(trained, weights="0" * 64)
    refused("metrics/digits/tla-0: measured on other weights", "dvc repro")
    kept = trained.read_text()
    trained.unlink()
    refused("tla-0/train.json: No such file or directory; run the train stage")
    trained.write_text(kept)
    shutil.copytree(RecipePaths("digits").model("at", 0).detector, paths.detector, dirs_exist_ok=True)
    refused("tla-0/detector: the detector was fitted to another model; run the detect stage")
    shutil.rmtree(paths.detector)
    refused("detector.json: cannot be read", "run the detect stage")
    shutil.rmtree(paths.model)
    refused("tla-0/model/config.json: cannot be read", "train the model first")


def test_a_store_that_is_out_of_reach_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run() == 1
    assert only_error(capsys) == "error: nothing was deployed, since MLflow cannot be used, as the warning above says"


class Failing:
    """A client that breaks off once: at its first call of `step`, before or after it had an effect."""

    def __init__(self, client: MlflowClient, step: str, error: BaseException, after: bool) -> None:
        self.client, self.step, self.error, self.after = client, step, error, after
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name != self.step or self.failed:
            return method

        def fail(*arguments: Any, **named: Any) -> None:
            self.failed = True
            if self.after:
                method(*arguments, **named)
            raise self.error

        return fail


def fail_at(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, after: bool = True) -> list[Failing]:
    """Deployments get a failing client from now on; the clients they got."""
    made: list[Failing] = []

    def failing(stage: Any) -> tuple[Failing, str]:
        real, experiment = client_and_experiment(stage)
        made.append(Failing(real, step, error, after))
        return made[-1], experiment

    monkeypatch.setattr(tasks.deploy, "client_and_experiment", failing)
    return made


@pytest.mark.parametrize(
    ("after", "error", "status", "said"),
    [
        (False, KeyboardInterrupt(), 130, "interrupted: repeat the command to go on"),
        (
            True,
            MlflowException("disk\nfull"),
            1,
            "error: nothing was deployed: MLflow: MlflowException: disk full",
        ),
    ],
    ids=["interrupted before", "failing after"],
)
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_nothing_behind(
    step: str,
    after: bool,
    error: BaseException,
    status: int,
    said: str,
    registered: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with working_in(registered):
        before = everything()
        if step == "create_registered_model" and before[0]:
            pytest.skip("there is one already")
        clients = fail_at(monkeypatch, step, error, after)
        capsys.readouterr()
        assert run() == status
        assert clients[0].failed
        assert only_error(capsys) == said
        assert everything() == before


@pytest.mark.parametrize("step", ["create_model_version", "set_registered_model_alias", "log_outputs"])
def test_what_a_killed_deployment_left_is_undone_by_the_next(
    step: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--method", "at") == 0
    with monkeypatch.context() as patch:
        fail_at(patch, step, RuntimeError())
        patch.setattr(tasks.deploy, "_undo", lambda *_: None)
        assert run() == 1
    assert len(registry()) == 2
    assert run() == 0
    assert sorted(registry().values()) == ["at", "tla*"]
    assert client().get_model_version_by_alias(NAME, CHAMPION).tags[FORMER] == "1"
    assert len(everything()[2]) == 2


def test_what_cannot_be_undone_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "log_outputs", RuntimeError("lost"))
        patch.setattr(MlflowClient, "delete_model_version", None)
        assert run() == 1
    error = only_error(capsys)
    assert "the deployment failed (RuntimeError) and could not be undone (TypeError: " in error
    assert "repeat the command, which undoes it first" in error
    assert run() == 0
    assert list(registry().values()) == ["tla*"]
    assert len(everything()[2]) == 1


@pytest.fixture
def logged(project: Path) -> Path:
    """The folder of a deployed model, as the store holds it."""
    assert run() == 0
    return Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{CHAMPION}"))


def test_it_is_plain_files_and_says_what_it_is(logged: Path, project: Path) -> None:
    files = {file.relative_to(logged).as_posix() for file in logged.rglob("*") if file.is_file()}
    assert {file for file in files if not file.startswith("code/trl/")} <= {
        *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "serving.py", "registered_model_meta"),
        *("input_example.json", "serving_input_example.json"),
        *("artifacts/model/model.safetensors", "artifacts/model/config.json"),
        *("artifacts/detector/detector.safetensors", "artifacts/detector/detector.json"),
    }
    assert {Path(file).suffix for file in files if file.startswith("code/trl/")} <= {".py", ".html", ".jinja", ".typed"}

    model = mlflow.pyfunc.load_model(str(logged))
    threshold = json.loads((logged / "artifacts/detector/detector.json").read_text())["calibration"]["threshold"]
    said = model.metadata.metadata
    expected = {"data": "digits", "threat": "linf 0.2", "method": "tla", "detector": "gaussian", "false_alarms": "0.05"}
    assert {f"trl.{key}": value for key, value in expected.items()}.items() <= said.items()
    assert float(said["trl.threshold"]) == threshold
    assert said["trl.weights"] == client().get_model_version_by_alias(NAME, CHAMPION).tags["trl.weights"]
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    required = dict(line.split("==") for line in (logged / "requirements.txt").read_text().split())
    assert required["numpy"] == np.__version__
    assert required["torch"] == torch.__version__.partition("+")[0]


def test_loading_and_predicting_unpickle_nothing(logged: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for module, name in (
        *((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (pickle, "_Unpickler")),
        *((cloudpickle, "load"), (cloudpickle, "loads"), (torch, "load")),
    ):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # MLflow's own guard
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}")

    x = np.random.default_rng(0).random((7, 1, 8, 8), np.float32)
    answer = model.predict(x)
    paths = RecipePaths("digits").model("tla", 0)
    judgement = Guard.load(paths.model, paths.detector).judge(torch.tensor(x))
    assert answer["class"].tolist() == judgement.classes.tolist()
    assert answer["probability"].tolist() == judgement.probabilities.tolist()
    assert answer["adversarial_score"].tolist() == judgement.scores.tolist()
    assert answer["adversarial"].tolist() == judgement.adversarial.tolist()
    assert model.predict({"images": x}).equals(answer)
    for wrong, message in (
        (x.astype(np.float64), "dtype of input float64 does not match expected dtype float32"),
        (x[:, :, :7], r"Shape of input \(7, 1, 7, 8\) does not match"),
        (x + 1, r"^pixels lie in \[1\.\d+, 2\]|^pixels lie in \[1\.\d+, 1\.\d+\]"),
        (np.full_like(x, np.nan), "^images hold NaN: give values in "),
    ):
        with pytest.raises(MlflowException, match=message) as caught:
            model.predict(wrong)
        assert caught.value.get_http_status_code() == 400
