import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows import services
from flows.services import Service, main
from trl.common.errors import TrlError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(services, "FOLDER", tmp_path)
    monkeypatch.setattr(services, "PROFILES", tmp_path / "profiles.toml")
    monkeypatch.setattr(services, "ADDRESSES", tmp_path / "addresses.json")
    return tmp_path


def sleeper(say: str = "ready") -> Service:
    code = f"import time; print({say!r}, flush=True); time.sleep(60)"
    return Service("worker", [sys.executable, "-c", code], "ready")


def test_a_service_runs_until_it_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    service = sleeper()
    assert service.process() is None
    service.start(dict(os.environ))
    process = service.process()
    assert process is not None
    assert main(["down"]) == 0
    assert not process.is_running()
    assert "stopped worker" in capsys.readouterr().out
    assert main(["down"]) == 0
    assert "nothing was running" in capsys.readouterr().out


def test_another_program_with_the_recorded_id_is_not_taken_for_the_service() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        created = psutil.Process(other.pid).create_time()
        service = sleeper()
        service.record.write_text(json.dumps({"pid": other.pid, "created": created}))
        assert service.process() is not None
        service.record.write_text(json.dumps({"pid": other.pid, "created": created - 100}))
        assert service.process() is None
        main(["down"])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_service_that_ends_at_once_shows_its_log() -> None:
    service = Service("broken", [sys.executable, "-c", "raise SystemExit('no such database')"], "ready")
    with pytest.raises(TrlError, match="no such database"):
        service.start(dict(os.environ))


def test_a_taken_port_is_named_before_anything_starts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["up", "--prefect-port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"port {port} is in use" in error
    assert "PREFECT_PORT" in error
    assert not list(folder.glob("*.log"))
