"""Two flow runs and an editor in one folder: each run works on what it started with, and that is what is recorded."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

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
        status = self.process.wait(300)
        assert status == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def shared(project: Project) -> Iterator[Project]:
    project.set(lambda p: p.update(methods=["um"]))
    project.set(lambda p: p["recipes"]["digits"]["train"].update(epochs=300))
    yield project


def test_two_runs_and_an_editor_do_not_meet(shared: Project) -> None:
    params = shared.root / "params.yaml"
    before = params.read_text()
    one, two = FlowRun(shared), FlowRun(shared, "--set", "recipes.digits.train.epochs=200")
    one.wait_for("epoch 1/300")
    two.wait_for("epoch 1/200")
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
    runs = {run.data.params["train.epochs"]: run for run in shared.runs("model")}
    assert set(runs) == {"200", "300"}
    for epochs, run in runs.items():
        assert len(shared.client().get_metric_history(run.info.run_id, "epoch")) == int(epochs)
        assert "robust/worst" in run.data.metrics
    assert len(shared.runs("pipeline")) == 2

    # Both are in the cache: with their parameters again they come back, and nothing runs.
    for text, epochs in ((before, 300), (before.replace("epochs: 300", "epochs: 200", 1), 200)):
        params.write_text(text)
        assert "0 stages ran, 5 were up to date" in FlowRun(shared).ended()
        assert json.loads((shared.root / TRAIN_JSON).read_text())["epochs"] == epochs
        assert "up to date" in shared.shell("dvc", "status")


def test_two_runs_of_the_same_do_each_stage_once(shared: Project) -> None:
    one, two = FlowRun(shared), FlowRun(shared, "--methods", "um")
    outputs = (one.ended(), two.ended())
    for stage in ("train", "attack", "detect"):
        assert sum(f"> python -m tasks.{stage} " in output for output in outputs) == 1
    assert "up to date" in shared.shell("dvc", "status")
    assert len(shared.runs("model")) == 1
