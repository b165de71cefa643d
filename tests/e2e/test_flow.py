"""The flow `trl` by the real Prefect and DVC, as a user starts it. The tests share one project, in this order."""

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers import ROOT
from tests.helpers.project import Project

pytestmark = pytest.mark.e2e

FLOW = ("python", "-m", "flows.full")
STAGES = {
    f"{stage}@digits{model}"
    for stage, model in zip(
        ("prepare", "train", "attack", "detect", "report"), ("", "-um-0", "-um-0", "-um-0", ""), strict=True
    )
}


def ended(output: str, state: str) -> set[str]:
    """The tasks of a flow run that ended in a state, by the flow's log."""
    lines = [line.split(" | ") for line in output.splitlines()]
    return {line[1] for line in lines if len(line) > 2 and line[2].startswith(f"Finished in state {state}(")}


def programs(root: Path) -> list[psutil.Process]:
    """What runs in a project."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("flow"))
    shutil.copy(ROOT / "prefect.toml", project.root)
    del project.environment["PREFECT_HOME"]  # prefect.toml says where it is
    return project


@pytest.fixture(scope="module")
def served(shared: Project) -> Iterator[Project]:
    """The project with its services up."""
    ports = ("--prefect-port", free_port(), "--mlflow-port", free_port())
    said = shared.shell("python", "-m", "flows.services", "up", *ports)
    assert "prefect deployment run trl/full --watch" in said
    assert "already running" in shared.shell("python", "-m", "flows.services", "up")
    yield shared
    assert "stopped worker, mlflow, prefect" in shared.shell("python", "-m", "flows.services", "down")
    assert programs(shared.root) == []


def test_the_flow_runs_every_stage_and_ends_with_the_table(shared: Project) -> None:
    shared.set(lambda p: p.update(methods=["um"]))
    output = shared.shell(*FLOW)
    assert ended(output, "Completed") >= STAGES | {"configure", "record", "compare"}
    table = output[output.index("\nmethod  clean") :].splitlines()
    assert table[3].split()[0] == "um"
    assert "outputs/digits/report/index.html" in output
    assert (shared.root / "outputs/digits/report/index.html").exists()
    assert "Traceback" not in output
    assert "up to date" in shared.shell("dvc", "status")


def test_options_are_for_their_run_alone(shared: Project) -> None:
    before = (shared.root / "params.yaml").read_text()
    output = shared.shell(*FLOW, "--seeds", "0", "1", "--set", "recipes.digits.attack.samples=80")
    assert ended(output, "Cached") == {"prepare@digits", "train@digits-um-0"}
    assert "warning: " in output
    assert "params.yaml does not select it: train@digits-um-1, attack@digits-um-1, detect@digits-um-1" in output
    assert "its inputs have changed: attack@digits-um-0" in output
    assert re.search(r"^report +in MLflow", output, re.MULTILINE)
    assert (shared.root / "params.yaml").read_text() == before
    assert not (shared.root / "outputs/digits/um-1").exists()
    assert "up to date" in shared.shell("dvc", "status")
    assert {run.info.run_name for run in shared.runs("model")} == {
        *("digits/um-0", "digits/um-0 (attack.samples=80)", "digits/um-1"),  # another budget is another run
    }


def test_a_deployed_run_finds_everything_cached(served: Project) -> None:
    served.shell("prefect", "deployment", "run", "trl/full", "--watch")
    log = (served.root / ".services/worker.log").read_text()
    assert ended(log, "Cached") == STAGES
    assert "0 stages ran, 5 were up to date" in log


def test_a_wrong_override_fails_with_its_own_line(served: Project) -> None:
    before = (served.root / "params.yaml").read_text()
    wrong = 'overrides=["recipes.digits.train.batch_size=0"]'
    served.shell("prefect", "deployment", "run", "trl/full", "--watch", "--param", wrong, fails=True)
    log = (served.root / ".services/worker.log").read_text()
    assert "error: params.yaml: recipes.digits.train.batch_size" in log
    assert "Traceback" not in log
    assert (served.root / "params.yaml").read_text() == before


def test_a_failed_stage_stops_what_needs_it_and_nothing_else(served: Project) -> None:
    # A weight that tla's training cannot survive; for um's model there is a new attack to run, and nothing to train.
    overrides = ["recipes.digits.methods.tla.lambda1=1e38", "recipes.digits.attack.samples=90"]
    output = served.shell(*FLOW, "--methods", "tla", "um", "--set", *overrides, fails=True)
    assert ended(output, "Failed") == {"train@digits-tla-0", "trl"}
    assert {"attack@digits-um-0", "detect@digits-um-0"} <= ended(output, "Completed")
    assert ended(output, "Cached") == {"prepare@digits", "train@digits-um-0"}
    last = output.splitlines()[-1]
    assert "train@digits-tla-0: error: training diverged" in last
    assert "3 that need it did not run" in last
    assert "Traceback" not in output


def test_an_interrupted_flow_leaves_nothing_running_and_dvc_unlocked(served: Project) -> None:
    before = programs(served.root)
    command = [*FLOW, "--methods", "at", "--set", "recipes.digits.train.epochs=100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    with subprocess.Popen(command, cwd=served.root, env=served.environment, **pipes) as flow:
        signal.signal(signal.SIGINT, heard)
        assert any("| epoch 1/100000" in line for line in flow.stdout)
        began = time.monotonic()
        flow.send_signal(signal.SIGINT)
        rest = flow.stdout.read()
    assert flow.returncode == 130, rest
    assert time.monotonic() - began < 30
    assert "train@digits-at-0" in ended(rest, "Cancelled")
    assert set(programs(served.root)) <= set(before)
    assert "up to date" in served.shell("dvc", "status")
    assert [each.name for each in (served.root / ".dvc/tmp/snapshots").iterdir()] == ["locks"]
