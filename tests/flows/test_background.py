import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.background import FLOW_RUN, MARK, Service
from trl.common.errors import TrlError

SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = program(tmp_path, SLEEP)
    yield made
    made.stop_runs()
    made.stop()


def program(folder: Path, code: str) -> Service:
    return Service("worker", [sys.executable, "-c", code], "ready", folder)


def test_a_service_runs_until_it_is_stopped(service: Service) -> None:
    assert service.process() is None
    service.start(dict(os.environ))
    process = service.process()
    assert process is not None
    service.stop()
    assert not process.is_running()
    assert service.process() is None


def test_another_program_with_the_recorded_id_is_not_taken_for_the_service(service: Service) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as other:
        service.record.write_text(str(other.pid))
        assert service.process() is None
        service.stop()
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("text", ["", "none", "-1", "99999999999"])
def test_a_damaged_record_is_no_process(service: Service, text: str) -> None:
    service.record.write_text(text)
    assert service.process() is None


def test_a_service_of_a_copied_project_is_not_the_copy_s(service: Service, tmp_path: Path) -> None:
    service.start(dict(os.environ))
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / service.record.name).write_text(service.record.read_text())
    program(copy, SLEEP).stop()
    assert service.process() is not None


def test_a_service_that_ends_at_once_shows_its_own_part_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("ready, said another one before\n")
    broken = program(tmp_path, "raise SystemExit('no such database')")
    with pytest.raises(TrlError, match=r":\nno such database$"):
        broken.start(dict(os.environ))
    assert broken.log.read_text() == "ready, said another one before\nno such database\n"


def test_what_a_killed_service_leaves_is_stopped(tmp_path: Path) -> None:
    service = program(tmp_path, PARENT)
    service.start(dict(os.environ))
    process = service.process()
    assert process is not None
    (child,) = process.children()
    process.kill()
    process.wait()
    assert service.process() is None
    assert child.is_running()
    service.stop()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_flow_runs_outlive_their_worker_and_get_the_time_to_end(service: Service, tmp_path: Path) -> None:
    service.start(dict(os.environ))
    ended = tmp_path / "ended"
    code = f"""
import pathlib, signal, sys
def end(*_):
    pathlib.Path({str(ended)!r}).touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
{SLEEP}"""
    environment = os.environ | {MARK: str(service.record), FLOW_RUN: "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        service.stop()
        assert [process.pid for process in service.runs()] == [run.pid]
        began = time.monotonic()
        service.stop_runs()
        assert time.monotonic() - began < 20
    assert ended.exists()
    assert service.runs() == []
