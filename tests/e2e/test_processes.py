"""Several processes train one model: one that dies ends the stage, and any number of them goes on from there."""

import csv
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers.project import Project

pytestmark = pytest.mark.e2e
TRAIN = (sys.executable, "-m", "tasks.train", "--recipe", "digits", "--method", "tla")
CURVES = "metrics/digits/tla-0/training.csv"


@pytest.fixture
def prepared(project: Project) -> Project:
    project.shell(sys.executable, "-m", "tasks.prepare")
    return project


def losses(project: Project) -> list[float]:
    with (project.root / CURVES).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def workers(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_killed_process_ends_the_stage_and_another_number_of_them_goes_on(prepared: Project) -> None:
    prepared.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=40))
    environment = prepared.environment | {"TRL_PROCESSES": "2", "TRL_CHECKPOINT_SECONDS": "0"}
    with subprocess.Popen(
        TRAIN, cwd=prepared.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as training:
        assert training.stdout is not None
        assert any(line.startswith("epoch 3/") for line in training.stdout)
        two = workers(training)
        assert len(two) == 2
        os.kill(two[1].pid, signal.SIGKILL)
        output = training.stdout.read()
    errors = [line for line in output.splitlines() if not line.startswith("epoch ")]
    number = errors[-1].split()[2]
    assert number in "12"
    said = f"error: process {number} of 2 was ended by SIGKILL; repeat the command to go on from the last checkpoint"
    assert errors == [said], output
    assert training.returncode == 1
    assert not psutil.wait_procs(two, timeout=20)[1]

    resumed = prepared.shell(*TRAIN)
    assert "resumed at step" in resumed
    found = losses(prepared)
    assert "resumed" not in prepared.shell(*TRAIN)
    whole = losses(prepared)
    assert len(found) == len(whole) == 40
    assert found[:2] == pytest.approx(whole[:2], abs=1e-5)  # later, roundings have become other adversarials
    assert found == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ("3", "error: batch_size is 50, which 3 processes cannot share evenly"),
        ("none", "error: TRL_PROCESSES=none: must be a whole number of at least 1"),
    ],
)
def test_an_impossible_number_of_processes_is_one_line(prepared: Project, count: str, message: str) -> None:
    assert prepared.shell(*TRAIN, fails=True, TRL_PROCESSES=count).splitlines() == [message]
