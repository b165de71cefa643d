"""MLflow's SQLite store: several stages may open it first at the same moment, and the project may have been moved."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from flows.background import is_healthy
from flows.services import services
from tasks.stage import Stage
from tasks.store import client_and_experiment, follow
from trl.config import load_params

ROOT = Path(__file__).parents[2]
OPEN = """
import sys
from pathlib import Path
import mlflow
from tasks.stage import Stage
from tasks.store import client_and_experiment
from trl.config import load_params
stage = Stage(load_params(as_written=True), "digits", "at", 0)
print("ready", flush=True)
sys.stdin.readline()
client, experiment = client_and_experiment(stage)
print(client.get_experiment(experiment).name)
"""


@pytest.mark.e2e
def test_processes_that_create_the_store_together_all_find_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0].splitlines()[-1:] for process in processes] == [["digits"]] * 3


@dataclass
class Stored:
    """A project's store as it was left in `root`: the ids of what is in it."""

    root: Path
    run: str
    model: str
    own: str  # an experiment without a place of its own


def opened() -> tuple[MlflowClient, str]:
    return client_and_experiment(Stage(load_params(as_written=True), "digits", "at", 0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    root = tmp_path_factory.mktemp("first") / "a project"  # which a URI writes differently
    root.mkdir()
    shutil.copy(ROOT / "params.yaml", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client, experiment = opened()
        run = client.create_run(experiment).info.run_id
        client.log_text(run, "hello", "a.txt")
        model = client.create_logged_model(experiment, "detector", run)
        (root / "weights").write_text("1 2 3")
        client.log_model_artifact(model.model_id, str(root / "weights"), "")
        client.create_registered_model("served")
        client.create_model_version("served", model.artifact_location, run, model_id=model.model_id)
        own = client.create_experiment("own")
    return Stored(root, run, model.model_id, own)


@pytest.fixture(params=["moved", "copied"])
def project(
    request: pytest.FixtureRequest, store: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stored]:
    """The project at another place, which is the working folder; nothing may change at its first one."""
    former, root = tmp_path / "former", tmp_path / "now"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(store.root, former)
    follow(former)
    if request.param == "moved":
        former.rename(root)
    else:
        shutil.copytree(former, root)
    before = contents(former)
    monkeypatch.chdir(root)
    yield Stored(root, store.run, store.model, store.own)
    assert contents(former) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_project_that_was_moved_or_copied_has_its_artifacts(project: Stored, tmp_path: Path) -> None:
    client, experiment = opened()
    assert [file.path for file in client.list_artifacts(project.run)] == ["a.txt"]
    assert [file.path for file in client.list_logged_model_artifacts(project.model)] == ["weights"]
    here = project.root.as_uri()
    version = client.get_model_version("served", "1")
    assert version.source.startswith(here)
    assert client.get_model_version_download_uri("served", "1").startswith(here)
    uri = f"sqlite:///{project.root}/mlflow.db"
    found = Path(download_artifacts("models:/served/1", dst_path=str(tmp_path / "got"), tracking_uri=uri))
    assert (found / "weights").read_text() == "1 2 3"

    client.log_text(client.create_run(experiment).info.run_id, "again", "b.txt")
    client.log_text(client.create_run(project.own).info.run_id, "again", "b.txt")
    assert len([*project.root.rglob("b.txt")]) == 2


def test_a_store_of_the_users_own_is_not_touched(
    store: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(store.root, root)
    (root / "mlflow.db").rename(root / "own.db")
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/own.db")
    client, experiment = opened()
    assert client.get_experiment(experiment).artifact_location == (store.root / "mlartifacts").as_uri()


@pytest.mark.parametrize("address", ["sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"])
def test_a_moved_store_is_the_projects_under_its_address_too(
    store: Stored, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "moved"
    shutil.copytree(store.root, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(root=root))
    client, experiment = opened()
    assert client.get_experiment(experiment).artifact_location == (root / "mlartifacts").as_uri()
    assert [file.path for file in client.list_artifacts(store.run)] == ["a.txt"]


def test_a_folder_that_links_to_the_store_uses_the_projects(store: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(store.root)
    snapshot = store.root / "snapshot"
    snapshot.mkdir()
    (snapshot / "mlflow.db").symlink_to(store.root / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(snapshot)
    client, experiment = client_and_experiment(Stage(load_params(ROOT / "params.yaml", as_written=True), "digits"))
    assert client.get_experiment(experiment).artifact_location == (store.root / "mlartifacts").as_uri()


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a%b", "a#b=c&d"])
def test_any_name_of_the_projects_folder_will_do(
    store: Stored, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / name
    shutil.copytree(store.root, root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    client, experiment = opened()
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "hello", "b.txt")
    assert [file.path for file in client.list_artifacts(store.run)] == ["a.txt"]
    assert [*root.rglob("b.txt")] == [root / "mlartifacts" / run / "artifacts" / "b.txt"]
    assert not [path for path in tmp_path.iterdir() if path != root]


def test_a_folder_inside_the_former_one_is_followed_once(store: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    root = store.root / "mlartifacts" / "inside"
    shutil.copytree(store.root, root, ignore=lambda folder, names: ["inside"] if folder.endswith("mlartifacts") else [])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    for _ in range(2):
        client, experiment = opened()
        assert client.get_experiment(experiment).artifact_location == (root / "mlartifacts").as_uri()
        assert [file.path for file in client.list_artifacts(store.run)] == ["a.txt"]


def test_no_store_is_none_to_follow(tmp_path: Path) -> None:
    follow(tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.e2e
def test_the_server_shows_the_artifacts_of_a_moved_project(project: Stored) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, mlflow, _ = services(0, port)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        mlflow.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not is_healthy(mlflow.health):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        follow(project.root)  # while it runs, as `make up` does it
        page = f"http://127.0.0.1:{port}/get-artifact?path=a.txt&run_uuid={project.run}"
        assert urllib.request.urlopen(page, timeout=30).read() == b"hello"
    finally:
        os.killpg(server.pid, 15)
        server.wait()
