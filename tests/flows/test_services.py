import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows import services
from flows.background import Service
from flows.services import choose_ports, main, up
from trl.common.errors import TrlError

SLEEP = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(services, "FOLDER", tmp_path)
    monkeypatch.setattr(services, "PROFILES", tmp_path / "profiles.toml")
    monkeypatch.setattr(services, "ADDRESSES", tmp_path / "addresses.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Service]]:
    """Three small programs instead of the services; the last, the worker, is running."""
    names = ("prefect", "mlflow", "worker")
    small = [Service(name, [sys.executable, "-c", SLEEP], "ready", folder) for name in names]
    monkeypatch.setattr(services, "services", lambda *ports: list(small))
    small[2].start(dict(os.environ))
    yield small
    assert main(["down"]) == 0
    assert [service.process() for service in small] == [None] * 3


def test_up_starts_what_is_missing_and_touches_nothing_that_runs(
    programs: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    up()
    before = [service.process() for service in programs]
    assert all(before)
    assert before[0] is not None
    before[0].kill()
    before[0].wait()
    up()
    after = [service.process() for service in programs]
    assert after[0] not in (None, before[0])
    assert after[1:] == before[1:]
    up()
    assert [service.process() for service in programs] == after
    printed = capsys.readouterr().out
    assert "starting prefect, mlflow …" in printed
    assert "starting prefect …" in printed
    assert "already running" in printed


def test_up_that_fails_stops_only_what_it_started(programs: list[Service]) -> None:
    programs[1] = Service("mlflow", [sys.executable, "-c", "raise SystemExit('no store')"], "ready", programs[1].folder)
    worker = programs[2].process()
    with pytest.raises(TrlError, match="no store"):
        up()
    assert [service.process() for service in programs] == [None, None, worker]


def test_two_at_once_start_each_service_once(programs: list[Service]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(up) for _ in range(2)]:
            done.result()
    assert [service.log.read_text() for service in programs] == ["ready\n"] * 3


def test_down_without_services_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down"]) == 0
    assert "nothing was running" in capsys.readouterr().out


def test_ports_are_kept_while_they_are_in_use() -> None:
    assert choose_ports((None, None), None, in_use=False) == [4200, 5000]
    assert choose_ports((None, 5001), [4300, 5300], in_use=False) == [4300, 5001]
    assert choose_ports((None, 5300), [4300, 5300], in_use=True) == [4300, 5300]
    with pytest.raises(TrlError, match=r"4300 and 5300; run `make down`"):
        choose_ports((4301, None), [4300, 5300], in_use=True)
    with pytest.raises(TrlError, match="cannot both use port 5000"):
        choose_ports((5000, None), None, in_use=False)


@pytest.mark.parametrize("option", ["--prefect-port", "--mlflow-port"])
def test_a_taken_port_is_named_before_anything_starts(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = {"--prefect-port": free.getsockname()[1], "--mlflow-port": free.getsockname()[1] - 1}
        ports[option] = port = taken.getsockname()[1]
        free.close()
        assert main(["up", *(str(part) for pair in ports.items() for part in pair)]) == 1
    error = capsys.readouterr().err
    assert f"port {port} is in use" in error
    assert option.strip("-").replace("-", "_").upper() in error
    assert not list(folder.glob("*.log"))


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_an_impossible_port_is_an_error(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["up", "--prefect-port", port])
    assert "must be a port from 1 to 65535" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(services, "FOLDER", folder / "file" / ".services")
    assert main(["down"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
