"""Two flow runs and an editor in one folder: each run works on what it started with, and that is what is recorded."""

import json
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.helpers import ROOT
from tests.helpers.project import Project

pytestmark = pytest.mark.e2e
FLOW = ("python", "-m", "flows.full")
TRAIN_JSON = "metrics/digits/um-0/train.json"


class FlowRun:
    """A flow run in the background."""

    def __init__(self, project: Project, *options: str) -> None:
        self.log = project.root / ".services" / f"{'-'.join(options) or 'plain'}.log"
        self.log.parent.mkdir(exist_ok=True)
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*FLOW, *options], cwd=project.root, env=project.environment, stdout=file, stderr=subprocess.STDOUT
            )
        signal.signal(signal.SIGINT, heard)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 240
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def ended(self) -> str:
        status = self.process.wait(400)
        assert status == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def shared(project: Project) -> Project:
    shutil.copy(ROOT / "prefect.toml", project.root)
    del project.environment["PREFECT_HOME"]  # prefect.toml says where it is
    project.set(lambda p: p.update(methods=["um"]))
    project.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=300))
    return project


def test_two_runs_and_an_editor_do_not_meet(shared: Project) -> None:
    params = shared.root / "params.yaml"
    before = params.read_text()
    one, two = FlowRun(shared), FlowRun(shared, "--set", "recipes.digits.train.optimizer.lr=0.02")
    for run in (one, two):
        run.wait_for("epoch 1/300")
    assert one.process.poll() is None  # both train at once
    shared.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=2))
    edited = params.read_text()
    for output in (one.ended(), two.ended()):
        assert "train@digits-um-0" in output[output.index("warning: ") :].splitlines()[0]
        assert "Traceback" not in output

    # Nothing of either is in the folder, which asks for two epochs.
    assert params.read_text() == edited
    assert not (shared.root / TRAIN_JSON).exists()
    assert "train@digits-um-0" not in (shared.root / "dvc.lock").read_text()

    # In MLflow each is as it ran.
    runs = shared.runs("model")
    assert {run.data.params["train.optimizer.lr"] for run in runs} == {"0.01", "0.02"}
    for run in runs:
        assert run.data.params["train.epochs"] == "300"
        assert len(shared.client().get_metric_history(run.info.run_id, "train/epoch")) == 300
        assert "robust/worst" in run.data.metrics
    assert len(shared.runs("pipeline")) == 2

    # Both are in the cache: with their parameters again they come back, and only the comparison is drawn again.
    found = set()
    for text in (before, before.replace("lr: 0.01", "lr: 0.02", 1)):
        params.write_text(text)
        assert set(re.findall(r"> python -m tasks\.(\w+)", FlowRun(shared).ended())) <= {"report"}
        train = json.loads((shared.root / TRAIN_JSON).read_text())
        assert train["epochs"] == 300
        found.add(train["weights"])
        assert "up to date" in shared.shell("dvc", "status")
    assert found == {run.data.tags["trl.weights"] for run in runs}


def test_two_runs_of_the_same_do_each_stage_once(shared: Project) -> None:
    shared.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=20))
    one, two = FlowRun(shared), FlowRun(shared, "--methods", "um")
    outputs = (one.ended(), two.ended())
    for stage in ("train", "attack", "detect"):
        assert sum(f"> python -m tasks.{stage} " in output for output in outputs) == 1
    assert "up to date" in shared.shell("dvc", "status")
    assert len(shared.runs("model")) == 1
