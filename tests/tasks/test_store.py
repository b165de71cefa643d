"""MLflow's SQLite store, which several stages may open first at the same moment."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPEN = """
import sys
from pathlib import Path
import mlflow
from tasks.stage import Stage
from tasks.tracking import client_and_experiment
from trl.config import load_params
stage = Stage(load_params(as_written=True), "digits", "at", 0)
print("ready", flush=True)
sys.stdin.readline()
client, experiment = client_and_experiment(stage)
print(client.get_experiment(experiment).name)
"""


@pytest.mark.e2e
def test_processes_that_create_the_store_together_all_find_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0].splitlines()[-1:] for process in processes] == [["digits"]] * 3
