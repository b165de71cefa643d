"""Several processes that share each batch: the same losses as one."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.trl.training.share_run import CASES

ROOT = Path(__file__).parents[3]


@cache
def results(count: int) -> dict[str, Any]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [*launcher, "-m", "tests.trl.training.share_run", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_find_the_losses_and_weights_that_one_finds(case: str) -> None:
    one, two = results(1)[case], results(2)[case]
    for alone, shared in zip(one["rows"], two["rows"], strict=True):
        # relative, since fp32 has steps of 8e-6 at the size of `norm`, 64
        assert alone == pytest.approx(shared, rel=1e-6, abs=1e-5, nan_ok=False)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)


def test_a_pool_of_each_processs_own_is_another_choice_of_negatives() -> None:
    """What `share_pool: false` changes, and that it trains."""
    one, two = results(1)["own pools"], results(2)["own pools"]
    assert one["rows"][-1]["loss"] != pytest.approx(two["rows"][-1]["loss"], abs=1e-5)
    assert two["rows"][-1]["loss"] < two["rows"][0]["loss"]
