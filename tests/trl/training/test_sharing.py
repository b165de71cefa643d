"""Several processes that share each batch: the losses of one where nothing is drawn, else runs that can be repeated."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.trl.training.share_run import DRAWN, FIXED, RESUMED

ROOT = Path(__file__).parents[3]


@cache
def results(count: int) -> dict[str, Any]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with TemporaryDirectory() as folder:
        command = [*launcher, "-m", "tests.trl.training.share_run", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(Path(folder, "out.json").read_text())


@pytest.mark.parametrize("case", FIXED)
def test_where_nothing_is_drawn_two_processes_find_what_one_finds(case: str) -> None:
    one, two = results(1)["fixed"][case], results(2)["fixed"][case]
    for alone, shared in zip(one["rows"], two["rows"], strict=True):
        # relative, since fp32 has steps of 8e-6 at the size of `norm`, 64
        assert alone == pytest.approx(shared, rel=1e-6, abs=1e-5, nan_ok=False)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)
    assert two["own"] == pytest.approx(one["own"], rel=1e-5)
    assert two["alike"]


@pytest.mark.parametrize("case", DRAWN)
def test_each_process_draws_for_its_own_rows_and_all_end_with_the_same_weights(case: str) -> None:
    one, two = results(1)["drawn"][case], results(2)["drawn"][case]
    assert one["rows"][0]["loss"] != pytest.approx(two["rows"][0]["loss"], abs=1e-5)
    assert two["rows"][-1]["loss"] < two["rows"][0]["loss"]
    assert two["rows"][-1]["loss"] == pytest.approx(one["rows"][-1]["loss"], rel=0.15)
    assert two["alike"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", RESUMED)
def test_as_many_processes_go_on_to_the_same_weights(case: str, count: int) -> None:
    whole, resumed = (results(count)[which][case] for which in ("drawn", "resumed"))
    assert resumed["weights"] == whole["weights"]
    assert resumed["own"] == whole["own"]
    assert resumed["alike"]
    for a, b in zip(resumed["rows"], whole["rows"], strict=True):  # a checkpoint adds up the figures in another order
        assert a == pytest.approx(b, rel=1e-6)
