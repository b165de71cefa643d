"""A deployed detector behind `mlflow models serve`, asked over HTTP. The tests share one server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import yaml
from torch import Tensor

from tasks.deploy import NEEDED, deploy
from tasks.paths import RecipePaths
from tasks.prepare import prepare
from tasks.stage import run_stage
from tests.helpers import ROOT
from tests.helpers.deployable import write_deployable
from trl.attacks import pgd
from trl.data import load_splits
from trl.detection.guard import Guard
from trl.threat import Linf

pytestmark = pytest.mark.e2e

MODEL = "models:/trl-detector@champion"
# Loads the model where there is nothing but what it requires, and prints where its code is and what it answers.
ELSEWHERE = """
import re, sys
from importlib.metadata import packages_distributions, requires

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

provided = {module: set(map(plain, found)) for module, found in packages_distributions().items()}
installed, required, left = set().union(*provided.values()), set(), set(sys.argv[2:])
while left:
    required.add(name := left.pop())
    lines = [line for line in requires(name) or () if "extra ==" not in line]
    named = {plain(re.match(r"[\\w.-]+", line).group()) for line in lines}
    left |= named & installed - required

class Absent:
    def find_spec(self, name, path=None, target=None):
        module = name.split(".")[0]
        if module != "trl" and not provided.get(module, required) & required:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(numpy.full((2, 1, 8, 8), 0.5, numpy.float32))
import trl
print(trl.__file__, answer["class"].tolist(), "torchvision" in sys.modules, sep=";")
"""


class Served:
    """A project with a deployed model, and the address of the server that serves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        folders = RecipePaths("digits").model("tla", 0)
        self.guard = Guard.load(root / folders.model, root / folders.detector)
        test = load_splits(root / RecipePaths("digits").data).test
        self.images, self.labels = test.images[:100] / 255, test.labels[:100]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHON", "TRL_"))}
        self.environment = environment | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
            "TRL_DEVICE": "cpu",
        }

    def ask(self, body: Any, kind: str = "application/json") -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return requests.post(f"{self.address}/invocations", data, headers={"Content-Type": kind}, timeout=60)

    def judged(self, x: Tensor) -> list[dict[str, Any]]:
        answer = self.ask({"inputs": x.tolist()})
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"]

    def expected(self, x: Tensor) -> list[dict[str, Any]]:
        """What the model and its detector say in this process."""
        names = ("class", "probability", "adversarial_score", "adversarial")
        rows = zip(*(part.tolist() for part in self.guard.judge(x)), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    return len(rows) == len(others) and all(a == pytest.approx(b) for a, b in zip(rows, others, strict=True))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(ROOT / "params.yaml", root)
        params = yaml.safe_load(Path("params.yaml").read_text())
        Path("params.yaml").write_text(yaml.safe_dump(params | {"recipe": "digits", "methods": ["tla"], "seeds": [0]}))
        assert run_stage(prepare, per_model=False, arguments=[]) == 0
        write_deployable("tla", steps=60)
        assert run_stage(deploy, per_model="optional", arguments=[]) == 0
    made = Served(root)
    command = ["mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local", "-p", made.port]
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=root, env=made.environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(server, made)
        yield made
        assert server.poll() is None  # nothing that was sent has ended it
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        wait_until_free(made)


def wait_for(server: "subprocess.Popen[bytes]", made: Served) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            if requests.get(f"{made.address}/ping", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.3)
    pytest.fail(f"the server did not come up:\n{(made.root / 'server.log').read_text()}")


def wait_until_free(made: Served) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(made.port))):
                return
        time.sleep(0.1)
    pytest.fail("the server did not end")


def test_it_answers_as_the_model_and_its_detector_do(served: Served) -> None:
    attacked = pgd(served.guard.model, served.images, served.labels, Linf(0.3), steps=20, step_size=0.05)
    clean, adversarial = served.judged(served.images), served.judged(attacked)
    assert same(clean, served.expected(served.images))
    assert same(adversarial, served.expected(attacked))
    labels = served.labels.tolist()
    accuracy = [sum(a["class"] == y for a, y in zip(rows, labels, strict=True)) for rows in (clean, adversarial)]
    assert accuracy[0] > 85 > 40 > accuracy[1]
    assert sum(row["adversarial"] for row in clean) < 20 < sum(row["adversarial"] for row in adversarial)
    assert served.judged(served.images[3:4])[0] == pytest.approx(clean[3])
    named = served.ask({"inputs": {"images": served.images[:3].tolist()}}).json()["predictions"]
    assert same(named, clean[:3])


def test_it_answers_many_at_once(served: Served) -> None:
    batches = [served.images[i : i + 5] for i in range(0, 80, 5)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(served.judged, batches))
    assert all(same(rows, served.expected(x)) for rows, x in zip(answers, batches, strict=True))


def changed(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: {"inputs": change(x)}


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (
            changed(lambda x: x[:, :, :7].tolist()),
            "",
            r"Shape of input \(2, 1, 7, 8\) does not match .* \(-1, 1, 8, 8",
        ),
        (changed(lambda x: x[0].tolist()), "", r"Shape of input \(1, 8, 8\) does not match expected shape"),
        (changed(lambda x: []), "", r"Shape of input \(0,\) does not match expected shape"),
        (changed(lambda x: (x + 1).tolist()), "", r"^pixels lie in \[1, 2\]: give images in \[0, 1\]"),
        (changed(lambda x: (x - 1).tolist()), "", r"^pixels lie in \[-1, 0\]: give images in \[0, 1\]"),
        (changed(lambda x: (x * torch.nan).tolist()), "", r"^images hold NaN: give values in \[0, 1\]$"),
        (changed(lambda x: [[[[None] * 8] * 8]]), "", r"^images hold NaN"),
        (changed(lambda x: [[[[1e300] * 8] * 8]]), "", r"^pixels lie in \[inf, inf\]"),
        (changed(lambda x: [[[["red"] * 8] * 8]]), "", "could not convert string to float: 'red'"),
        (changed(lambda x: [[[[0.0] * 8, [0.0] * 7]]]), "", "inhomogeneous shape"),
        (changed(lambda x: "an image"), "", "Failed to convert data `an image`"),
        (changed(lambda x: {"pictures": x.tolist()}), "", r"Model is missing inputs \['images'\]"),
        (lambda x: x.tolist(), "", "must be a JSON dictionary with exactly one of the input fields"),
        (lambda x: {"pictures": x.tolist()}, "", "must be a JSON dictionary with exactly one of the input fields"),
        (lambda x: b"\xff\x00 garbage", "", "valid JSON"),
        (lambda x: b"a,b\n1,2\n", "text/csv", "TensorSpec"),
        (lambda x: b"garbage", "application/vnd.apache.parquet", "Parquet"),
        (lambda x: b"garbage", "image/png", "only supports the following content types"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    body: Callable[[Tensor], Any], kind: str, message: str, served: Served
) -> None:
    x = served.images[:2].clone()
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the extremes, whatever the images
    answer = served.ask(body(x), kind or "application/json")
    assert 400 <= answer.status_code < 500
    said = answer.json()["message"] if answer.text.startswith("{") else answer.text
    assert re.search(message, said), said
    assert len(said) < 1500  # the images are not in it
    if message.startswith("^"):
        assert "\n" not in said
    assert same(served.judged(x), served.expected(x))  # it goes on


def test_it_can_be_loaded_where_only_its_requirements_are(served: Served, tmp_path: Path) -> None:
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{served.root}/mlflow.db"}
    command = [sys.executable, "-c", ELSEWHERE, MODEL, *NEEDED]
    done = subprocess.run(
        command, cwd=tmp_path, env=served.environment | store, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code, classes, torchvision = done.stdout.strip().split(";")
    assert Path(code).parts[-3:] == ("code", "trl", "__init__.py")  # the model's own, not this project's
    assert json.loads(classes) == [row["class"] for row in served.expected(torch.full((2, 1, 8, 8), 0.5))]
    assert torchvision == "False"
