"""The benchmark of the pipeline: its profiler times a process from within, and the sums add up."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pipeline
from benchmarks.profiler.sitecustomize import TIMED
from tests.helpers.deployable import rewrite
from tests.helpers.synthetic_results import write_model

TRAIN = "train@digits-um-0"


def process(argv: str, stage: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    """A line of the profiler: a tenth of a second of interpreter, then what `more` gives."""
    wall = {"interpreter": 0.1, **more.pop("wall", {})}
    cpu = {"interpreter": 0.1, **more.pop("cpu", {})}
    line = {"argv": argv.split(), "stage": stage, "start": start, "end": end, "wall": wall, "cpu": cpu}
    return line | {"cpu_total": sum(cpu.values()), "children_cpu": 0.0, "work": [], "events": []} | more


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """A flow that starts at 0, trains from 10 to 30 and records until 34."""
    return [
        process(
            *("-m flows.full", "", 0.0, 35.0),
            wall={"imports: prefect": 2.0, "Prefect": 5.0, "other": 24.0, "worker": 4.0},
            cpu={"other": 6.0},
            children_cpu=40.0,
            events=[[TRAIN, 10.0, 30.0], ["tasks.record", 30.0, 34.0]],
        ),
        process(
            *(f"-m dvc --wait-for-lock repro --single-item {TRAIN}", TRAIN, 10.2, 29.8),
            wall={"imports: dvc": 0.5, "other": 1.0, "command": 18.0},
            cpu={"imports: dvc": 0.5, "other": 0.9, "command": 0.0},
            events=[["command", 11.0, 29.0]],
        ),
        process(
            *("-m tasks.train --recipe digits --method um --seed 0", TRAIN, 11.5, 28.5),
            wall={"imports: torch": 2.0, "work": 12.0, "MLflow": 1.0, "imports: mlflow": 1.9},
            cpu={"imports: torch": 2.0, "work": 12.0, "MLflow": 0.5, "imports: mlflow": 1.9},
            cpu_total=20.5,  # a second thread computes
            work=[[15.0, 20.0], [21.0, 28.0]],
        ),
        process("-m tasks.record", "", 30.1, 33.9, wall={"imports: mlflow": 3.7}, cpu={"imports: mlflow": 3.0}),
    ]


def test_every_second_has_one_cause(lines: list[dict[str, Any]]) -> None:
    found = pipeline.account(lines, 35.2)
    train, record = found["stages"]["train"], found["stages"]["record"]
    assert (train["count"], record["count"]) == (1, 1)
    assert sum(train["seconds"].values()) == pytest.approx(20.0)
    assert sum(record["seconds"].values()) == pytest.approx(4.0)
    assert train["seconds"]["mathematics"] == 12.0
    assert train["seconds"]["DVC"] == 1.0
    assert train["seconds"]["interpreter"] == pytest.approx(0.1 + 0.1 + 0.4 + 1.0)  # to come and to go, twice
    flow = found["flow"]
    assert sum(flow["before"].values()) == pytest.approx(10.0)
    assert flow["before"]["Prefect"] == pytest.approx(10.0 - 2.1)
    assert sum(flow["before"].values()) + flow["stages"] + flow["record"] + flow["end"] == pytest.approx(35.2)
    assert sum(found["cpu"].values()) == pytest.approx(6.1 + 40.0)
    assert found["cpu"]["mathematics"] == pytest.approx(12.0 + 4.0)


def test_what_is_not_mathematics(lines: list[dict[str, Any]]) -> None:
    shares = pipeline.account(lines, 35.2)["not mathematics"]
    assert shares["of the stages' seconds"] == pytest.approx(1 - 12 / 24)
    assert shares["of all CPU seconds"] == pytest.approx(1 - 16 / 46.1)
    assert shares["of the run's seconds"] == pytest.approx(1 - 12 / 35.2)


def test_models_trained_side_by_side_cover_their_time_once() -> None:
    assert pipeline.covered([[5.0, 7.0], [0.0, 2.0], [1.0, 3.0], [1.5, 1.6]]) == 5.0
    assert pipeline.covered([]) == 0.0


def test_a_longer_run_is_estimated(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    for model in ("um-0", "tla-0", "tla-1"):
        write_model(tmp_path / model, "tla", 0)
        rewrite(tmp_path / model / "train.json", seconds=100.0)
    run = {"workers": 2} | pipeline.account(lines, 35.2)
    found = pipeline.estimate(run, tmp_path)
    assert found["models"] == 3
    assert found["training"] == 300.0
    train, record, prefect = 0.1 + 0.5 + 0.9 + 0.1 + 2.0 + 0.5 + 1.9, 0.1 + 3.0, run["cpu"]["Prefect"]
    assert found["not mathematics"] == pytest.approx(3 * train + record + prefect)
    assert found["share at most"] == pytest.approx(found["not mathematics"] / (found["not mathematics"] + 300))


def test_the_report_and_the_plot(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    run = {"workers": 2} | pipeline.account(lines, 35.2)
    figures = {"models": 4, "training": 1000.0, "not mathematics": 50.0, "share at most": 0.0476}
    found = {
        "machine": {"cpu": "a CPU", "gpu": None, "threads": 1, "capability": "AVX2"},
        **{"versions": {"torch": "2"}, "date": "2026-01-01", "seeds": [0], "recipe": "digits"},
        **{"run": run, "again": run, "estimates": {"mnist_cpu": figures}},
    }
    said = pipeline.report(found)
    assert "| | train ×1 | record ×1 | before stages | CPU, all |" in said
    assert "| mathematics | 12.0 |  |  | 16.0 |" in said
    assert "| sum | 20.0 | 4.0 | 10.0 | 46.1 |" in said
    assert "mnist_cpu: 50 CPU seconds that are not mathematics, at most 4.8% of the total" in said
    pipeline.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("module", TIMED)
def test_what_is_timed_exists(module: str) -> None:
    for path in TIMED[module]:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        assert callable(found)


def test_the_profiler_times_a_process(tmp_path: Path) -> None:
    """Imports belong to the outermost library that is imported, work within work to what is innermost."""
    code = {
        "trl/__init__.py": "",
        "trl/common/__init__.py": "",
        "trl/common/files.py": (
            "import time\ndef write_json():\n    time.sleep(0.2)\nwrite_csv = write_atomic = write_json\n"
        ),
        "tasks/__init__.py": "",
        "tasks/stage.py": "def run_stage(work, *, per_model):\n    work()\ndef load_params(): pass\n",
        "mlflow.py": "import time, helper\ntime.sleep(0.2)\n",
        "helper.py": "import time\ntime.sleep(0.2)\n",
    }
    for name, text in code.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    main = "import time\nfrom tasks.stage import run_stage\nfrom trl.common.files import write_json\n"
    main += "def work():\n    import mlflow\n    time.sleep(0.3)\n    write_json()\n    time.sleep(0.1)\n"
    main += "run_stage(work, per_model=False)\n"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(pipeline.PROFILER), str(tmp_path)]),
        "TRL_PROFILE": str(tmp_path / "lines"),
        "TRL_PROFILE_STAGE": TRAIN,
    }
    subprocess.run([sys.executable, "-c", main], cwd=tmp_path, env=environment, check=True)
    line = json.loads((tmp_path / "lines").read_text())
    assert line["stage"] == TRAIN
    expected = {"imports: mlflow": 0.4, "work": 0.4, "files": 0.2}
    assert {cause: line["wall"][cause] for cause in expected} == pytest.approx(expected, abs=0.1)
    assert sum(line["wall"].values()) == pytest.approx(line["end"] - line["start"], abs=0.05)
    assert [round(end - start, 1) for start, end in line["work"]] == [0.0, 0.3, 0.1]
    assert sum(line["cpu"].values()) <= line["cpu_total"] + 0.05
