"""The real services, killed while a flow run trains: `make up` brings back what is missing; nothing stays blocked."""

import json
import shutil
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.test_flow import free_port, programs
from tests.helpers import ROOT
from tests.helpers.project import Project

pytestmark = pytest.mark.e2e
UP = ("python", "-m", "flows.services", "up")
RUN = ("prefect", "deployment", "run", "trl/full", "--param", 'methods=["um"]', "--param")
EPOCHS = 'overrides=["recipes.digits.train.epochs={}"]'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("services"))
    for name in ("prefect.toml", "pyproject.toml"):
        shutil.copy(ROOT / name, project.root)
    del project.environment["PREFECT_HOME"]  # prefect.toml says where it is
    project.shell(*UP, "--prefect-port", free_port(), "--mlflow-port", free_port())
    yield project
    project.shell("python", "-m", "flows.services", "down")
    assert programs(project.root) == []


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)


def wait_for_an_epoch(project: Project, after: int = 0) -> int:
    """Wait until the worker's log says of another epoch; the log's length by then."""
    log = project.root / ".services/worker.log"
    deadline = time.monotonic() + 200
    while "| epoch " not in (text := log.read_text())[after:]:
        assert time.monotonic() < deadline, text
        time.sleep(0.5)
    return len(text)


def test_the_doctor_s_remedies_help(served: Project) -> None:
    doctor = ("python", "-m", "flows.doctor")
    assert all(line.startswith("ok ") for line in served.shell(*doctor).splitlines())
    served.shell("prefect", "work-queue", "pause", "default", "--pool", "gpu")
    served.shell("prefect", "--no-prompt", "deployment", "delete", "trl/full")
    kill([psutil.Process(int((served.root / ".services/worker.pid").read_text()))])
    found = [line for line in served.shell(*doctor, fails=True).splitlines() if line.startswith("FAULT")]
    assert [line.split()[1] for line in found] == ["background", "pool", "queues"]
    for line in found:
        remedy = line[line.index("`") + 1 : line.rindex("`")]
        served.shell(*(UP if remedy == "make up" else remedy.split()))
    assert all(line.startswith("ok ") for line in served.shell(*doctor).splitlines())


def test_training_outlives_the_server_and_a_crash_blocks_no_later_run(served: Project) -> None:
    served.shell(*RUN, EPOCHS.format(100000))
    wait_for_an_epoch(served)
    server = psutil.Process(int((served.root / ".services/prefect.pid").read_text()))
    others = set(programs(served.root)) - {server}
    kill([server])
    assert "starting prefect …" in served.shell(*UP)
    assert others < set(programs(served.root))
    wait_for_an_epoch(served, after=wait_for_an_epoch(served))

    kill(programs(served.root))
    assert "1 flow run(s) had been killed: marked as Crashed" in served.shell(*UP)
    served.shell(*RUN, EPOCHS.format(1), "--watch")
    runs = json.loads(served.shell("prefect", "flow-run", "ls", "--output", "json"))
    assert [run["state_name"] for run in runs] == ["Completed", "Crashed"]
