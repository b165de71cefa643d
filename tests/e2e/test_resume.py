"""Training that is killed goes on: by one process, or by several, of which one that dies ends the stage."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.project import Project

pytestmark = pytest.mark.e2e
TRAIN = (sys.executable, "-m", "tasks.train", "--recipe", "digits", "--method", "tla")
WEIGHTS = "outputs/digits/tla-0/model/model.safetensors"
CURVES = "metrics/digits/tla-0/training.csv"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which one process has trained without a break. Nobody may change it."""
    project = Project(tmp_path_factory.mktemp("whole"))
    project.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=40))
    project.shell(sys.executable, "-m", "tasks.prepare")
    assert "resumed" not in project.shell(*TRAIN)
    return project


def losses(project: Project) -> list[float]:
    with (project.root / CURVES).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def without_model(whole: Project, root: Path) -> Project:
    """A copy whose training has to be done again."""
    project = whole.copy(root)
    (project.root / WEIGHTS).unlink()
    (project.root / CURVES).unlink()
    return project


def workers(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_killed_training_goes_on_and_ends_bit_for_bit_the_same(whole: Project, tmp_path: Path) -> None:
    project = without_model(whole, tmp_path)
    weights = project.root / WEIGHTS
    kills, output = 0, ""
    chance = random.Random(7)
    while not weights.exists():
        process = subprocess.Popen(
            TRAIN,
            cwd=project.root,
            env=project.environment | {"TRL_CHECKPOINT_SECONDS": "0.2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:  # let it get past its imports, to a checkpoint of its own
            output += line
            if line.startswith("epoch") and kills < 2:
                time.sleep(chance.uniform(0.3, 0.8))
                process.kill()
                kills += 1
                break
        process.wait()
    assert kills == 2
    assert "resumed at step" in output
    assert weights.read_bytes() == (whole.root / WEIGHTS).read_bytes()
    assert not list((project.root / "checkpoints").rglob("*.pt"))
    rows = project.runs("model")
    assert len(rows) == 1  # the interrupted training and its continuation are one run, and the same model as before
    assert len(project.client().get_metric_history(rows[0].info.run_id, "train/epoch")) == 40


def test_a_killed_process_ends_the_stage_and_another_number_of_them_goes_on(whole: Project, tmp_path: Path) -> None:
    project = without_model(whole, tmp_path)
    environment = project.environment | {"TRL_PROCESSES": "2", "TRL_CHECKPOINT_SECONDS": "0"}
    with subprocess.Popen(
        TRAIN, cwd=project.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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

    assert "resumed at step" in project.shell(*TRAIN)
    found, expected = losses(project), losses(whole)
    assert len(found) == len(expected) == 40
    assert found == pytest.approx(expected, abs=0.1)  # two draw other numbers, from the same distribution


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ("3", "error: batch_size is 50, which 3 processes cannot share evenly"),
        ("none", "error: TRL_PROCESSES=none: must be a whole number of at least 1"),
    ],
)
def test_an_impossible_number_of_processes_is_one_line(whole: Project, count: str, message: str) -> None:
    assert whole.shell(*TRAIN, fails=True, TRL_PROCESSES=count).splitlines() == [message]


def test_parameters_that_change_while_it_trains_end_it_and_it_resumes_once_they_are_restored(
    whole: Project, tmp_path: Path
) -> None:
    project = without_model(whole, tmp_path)
    params = project.root / "params.yaml"
    before = params.read_text()
    slow = project.environment | {"TRL_CHECKPOINT_SECONDS": "100"}  # so that it is noticed once all epochs are done
    with subprocess.Popen(
        ("dvc", "repro", "train@digits-tla-0"), cwd=project.root, env=slow, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        assert any(line.startswith("epoch 3/") for line in training.stdout)
        project.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=2))
        output = training.stdout.read()
    assert training.returncode != 0
    assert "epoch 40/40" in output
    assert not (project.root / WEIGHTS).exists()
    locked = project.root / "dvc.lock"
    assert not locked.exists() or "train@digits-tla-0" not in locked.read_text()

    params.write_text(before)
    assert re.search(r"resumed at step (\d+) of \1 ", project.shell("dvc", "repro", "train@digits-tla-0"))
    assert (project.root / WEIGHTS).read_bytes() == (whole.root / WEIGHTS).read_bytes()
    assert "epochs: 40" in locked.read_text()
