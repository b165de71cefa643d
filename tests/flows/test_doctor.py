import json
import socket
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from flows import doctor, services
from flows.doctor import background, clock_fault, devices, disk, faults, project, remote, server, store, versions
from flows.doctor import worker_fault as workers

PROJECT = """
[project]
dependencies = ["numpy>=99", "pyyaml"]
optional-dependencies = {pipeline = ["no-such-library>=1"]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(services, "FOLDER", tmp_path)
    monkeypatch.setattr(doctor, "ADDRESSES", tmp_path / "addresses.json")
    return tmp_path


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_versions_out_of_range_and_missing(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(PROJECT)
    wrong, missing = versions()
    assert wrong.startswith("numpy ")
    assert "numpy>=99 is needed: python -m pip install" in wrong
    assert missing.startswith("no-such-library is not installed: python -m pip install")


@pytest.mark.parametrize(("variable", "value"), [("TRL_DEVICE", "cuda:77"), ("TRL_WORKERS", "many")])
def test_a_device_that_does_not_exist(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    (fault,) = devices()
    assert f"{variable}={value}" in fault
    assert "unset the environment variable" in fault


def test_a_full_disk() -> None:
    (fault,) = disk(needed=1e18)
    assert "GB free, 1000000000 GB needed: `dvc gc --workspace`" in fault
    assert list(disk(needed=0)) == []


def test_a_folder_without_git_and_dvc(folder: Path) -> None:
    (folder / ".git").mkdir()
    (fault,) = project()
    assert "no .dvc" in fault
    assert "`dvc init`" in fault


def test_a_remote_that_is_gone(folder: Path) -> None:
    (folder / ".dvc").mkdir()
    settings = f"[core]\n    no_scm = True\n    remote = shared\n['remote \"shared\"']\n    url = {folder / 'gone'}\n"
    (folder / ".dvc/config").write_text(settings)
    (fault,) = remote()
    assert f"no folder {folder / 'gone'}" in fault
    assert "mount or start it, or `dvc remote modify`" in fault


def test_a_damaged_store(folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(b"no database" * 1000)
    (fault,) = store()
    assert "mlflow.db is damaged" in fault
    assert "`python -m tasks.record`" in fault


def test_a_store_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed_port()}/")
    (fault,) = store()
    assert fault == "MLflow's server does not respond: start it, or correct MLFLOW_TRACKING_URI"


def test_services_that_have_died(folder: Path) -> None:
    (folder / "addresses.json").write_text(json.dumps([1, 2]))
    assert [fault.split()[0] for fault in background()] == ["prefect", "mlflow", "worker"]
    assert all(fault.endswith("`make up`") for fault in background())


def test_a_server_that_is_unknown_or_does_not_respond() -> None:
    (fault,) = server(None)
    assert "`make up`" in fault
    (fault,) = server(f"http://127.0.0.1:{closed_port()}/api")
    assert "does not respond: `make up`" in fault


@pytest.mark.parametrize("ages", [[], [3.5], [4, 100]])
def test_no_worker_with_a_recent_heartbeat(ages: list[float]) -> None:
    (fault,) = workers(ages)
    assert f"none of {len(ages)} workers" in fault
    assert "`make up`" in fault
    assert list(workers([*ages, 1])) == []


@pytest.mark.parametrize("ahead", [-600, 60])
def test_a_wrong_clock(ahead: float) -> None:
    (fault,) = clock_fault(formatdate(time.time() - ahead, usegmt=True))
    assert f"by {'+' if ahead > 0 else '-'}" in fault
    assert "timedatectl" in fault
    assert list(clock_fault(formatdate(time.time(), usegmt=True))) == []


def test_a_check_that_fails_is_a_fault_of_one_line() -> None:
    assert faults(versions) == [
        "cannot be checked: FileNotFoundError: [Errno 2] No such file or directory: 'pyproject.toml'"
    ]
