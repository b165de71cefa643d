"""An evaluation that is interrupted and repeated ends as one that never was."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trl.evaluation.tiny import Net, gradient_sign, images, noise
from trl.attacks import pgd
from trl.attacks.ensemble import Ensemble
from trl.errors import TrlError
from trl.evaluation import Evaluation, evaluate
from trl.evaluation.state import BOOKS, IMAGES, describe, fingerprint
from trl.threat import L2, Linf

THREAT = Linf(0.2)


class Interrupted(Exception):
    pass


class Fuse:
    """`attack` until its call number `calls`."""

    def __init__(self, attack, calls: int) -> None:
        self.attack, self.left = attack, calls

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.attack(model, x, y)

    def __repr__(self) -> str:
        return "fuse"


def run(state: Path | None, calls: int = 1000, **changed) -> Evaluation:
    """9 batches under a fused attack: 3 for each of two attacks and for the ensemble's first part."""
    x, y = images()
    fuse = Fuse(noise(0.2), calls)
    attacks = {"noise": fuse, "more": fuse, "two": Ensemble({"noise": fuse, "sign": gradient_sign(0.2)})}
    # the search for signs asks no attack and leaves nothing in the state: `test_sigkill` has it
    given = {"attacks": attacks, "threat": THREAT, "batch_size": 20, "seed": 3, "checks": False, **changed}
    return evaluate(Net(), x, y, state=state, **given)


def assert_same(found: Evaluation, expected: Evaluation) -> None:
    for field in ("correct", "stages", "adversarials", "distances", "epsilon"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=0, atol=0)
    counts = [{n: (c.forwards, c.backwards) for n, c in e.costs.items()} for e in (found, expected)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("calls", range(9))
def test_goes_on_after_an_interruption_anywhere(tmp_path: Path, calls: int) -> None:
    expected = run(None)
    with pytest.raises(Interrupted):
        run(tmp_path, calls)
    again = run(tmp_path, 9 - calls)  # only what was left fits
    assert_same(again, expected)
    assert_same(run(tmp_path, 0), expected)  # nothing is left


def test_every_unit_in_a_process_of_its_own(tmp_path: Path) -> None:
    for _ in range(8):
        with pytest.raises(Interrupted):
            run(tmp_path, 1)
    assert_same(run(tmp_path, 1), run(None))


@pytest.mark.parametrize(
    "changed",
    [{"seed": 4}, {"batch_size": 21}, {"threat": L2(1.0)}, {"cumulative": True}, {"attacks": {"noise": noise(0.1)}}],
)
def test_another_evaluation_does_not_touch_it(tmp_path: Path, changed: dict) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, 5)
    other = run(tmp_path, **changed)
    assert_same(other, run(None, **changed))
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(run(tmp_path, 4), run(None))


@pytest.mark.parametrize("name", [BOOKS, IMAGES])
@pytest.mark.parametrize("damage", ["truncated", "other bytes", "gone"])
def test_a_damaged_state_starts_anew(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, 5)
    (path,) = tmp_path.glob(f"*/{name}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\0" * len(content))
    assert_same(run(tmp_path), run(None))
    if (name, damage) != (BOOKS, "gone"):
        assert "starting anew" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrlError, match="cannot hold the evaluation's state"):
        run(tmp_path / "file")


def test_fingerprint_knows_model_data_and_attacks() -> None:
    x, y = images()
    attack = partial(pgd, threat=THREAT, steps=3)
    same = fingerprint(Net(), x, y, {"a": attack}, THREAT)
    assert fingerprint(Net(), x.clone(), y, {"a": partial(pgd, steps=3, threat=Linf(0.2))}, THREAT) == same
    changed = x.clone()
    changed[-1, -1, -1, -1] ^= 1
    different = [
        fingerprint(Net(1), x, y, {"a": attack}, THREAT),
        fingerprint(Net(), changed, y, {"a": attack}, THREAT),
        fingerprint(Net(), x, y.flip(0), {"a": attack}, THREAT),
        fingerprint(Net(), x, y, {"b": attack}, THREAT),
        fingerprint(Net(), x, y, {"a": partial(pgd, threat=THREAT, steps=4)}, THREAT),
        fingerprint(Net(), x, y, {"a": attack}, dataclasses.replace(THREAT, epsilon=0.3)),
    ]
    assert len({same, *different}) == 1 + len(different)


def test_description_of_an_attack() -> None:
    assert describe(partial(pgd, threat=THREAT, steps=3)) == "pgd(steps=3, threat=Linf(epsilon=0.2))"
    assert "0x" not in describe(partial(pgd, criterion=object()))
    assert describe(Ensemble({"a": pgd})) == "{'a': 'pgd'}"


KILLED = """
import sys
from functools import partial
from tests.trl.evaluation.test_state import survive
survive(sys.argv[1])
"""


def survive(folder: str | None) -> Evaluation:
    """Long enough to be killed in its middle."""
    x, y = images(100)
    attack = partial(pgd, threat=THREAT, steps=40, restarts=2, loss="dlr")
    return evaluate(Net(), x, y, {"both": Ensemble({"a": attack, "b": attack})}, THREAT, 4, state=folder)


def test_sigkill(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    while not list(tmp_path.glob(f"*/{BOOKS}")):
        assert process.poll() is None
        time.sleep(0.01)  # leaves the processor to it
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_same(survive(str(tmp_path)), survive(None))
