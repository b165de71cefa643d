"""When checkpoints are written, which files they are, and what an interrupt leaves."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_training import ATTACK, attack_at, config, images, model, setting
from trl.common.errors import TrlError
from trl.objectives import build_objective
from trl.training import Checkpoint, Outcome, train
from trl.training.interrupt import interrupts_noted

CPU = torch.device("cpu")


def weights(value: float, n: int = 10) -> dict[str, Tensor]:
    return {"w": torch.full((n,), value)}


def test_the_best_weights_are_written_only_when_they_change(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    checkpoint.save({"step": 1}, {}, 0)
    checkpoint.wait()
    assert [*tmp_path.iterdir()] == [checkpoint.path]
    for step, epoch in ((2, 1), (3, 1), (4, 3)):
        checkpoint.save({"step": step}, weights(epoch), epoch)
        checkpoint.wait()
        [best] = tmp_path.glob("*best*")
        if step == 2:
            first = best.stat().st_ino
        assert (best.stat().st_ino == first) == (epoch == 1)  # a file that is replaced is another one
        state, found = Checkpoint(checkpoint.path).load(CPU) or ({}, {})
        assert (state, found["w"].tolist()) == ({"step": step}, [epoch] * 10)
    checkpoint.remove()
    assert not [*tmp_path.iterdir()]


def test_a_crash_between_the_files_leaves_the_former_state(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    checkpoint.save({"step": 1}, weights(1), 1)
    checkpoint.wait()
    former = checkpoint.path.read_bytes()
    checkpoint.save({"step": 2}, weights(2), 2)
    checkpoint.wait()
    checkpoint.path.write_bytes(former)  # the state names weights that are gone
    with pytest.raises(TrlError, match=r"best-1.pt: damaged checkpoint"):
        Checkpoint(checkpoint.path).load(CPU)

    other = Checkpoint(tmp_path / "b.pt")
    other.save({"step": 1}, weights(1), 1)
    other.wait()
    newer = tmp_path / "b.best-2.pt"
    newer.write_bytes(b"half")  # of a crash before the state that would name it
    state, best = Checkpoint(other.path).load(CPU) or ({}, {})
    assert (state["step"], best["w"][0]) == (1, 1)
    again = Checkpoint(other.path)
    again.load(CPU)
    again.save({"step": 3}, weights(3), 3)
    again.remove()
    assert not newer.exists()


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    state = {"nested": [weights(1, 2_000_000)], "step": 1}
    checkpoint.save(state, {}, 0)
    state["nested"][0]["w"].add_(1)
    found, _ = checkpoint.load(CPU) or ({}, {})
    assert found["nested"][0]["w"].unique().tolist() == [1]


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt", seconds=1e-9)
    assert checkpoint.due
    checkpoint.save(weights(1, 5_000_000), {}, 0)
    assert not checkpoint.due
    checkpoint.wait()
    assert not checkpoint.due  # before 50 times what it took
    checkpoint._last -= 49 * checkpoint._cost
    assert not checkpoint.due
    checkpoint._last -= 2 * checkpoint._cost
    assert checkpoint.due
    always = Checkpoint(tmp_path / "b.pt", seconds=0)
    always.save(weights(1), {}, 0)
    assert always.due


def test_an_error_of_writing_is_raised_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(tmp_path / "file" / "a.pt")
    checkpoint.save({"step": 1}, {}, 0)
    with pytest.raises(TrlError, match=r"a.pt: cannot be written"):
        checkpoint.wait()


def run(checkpoint: Checkpoint, interrupt_at: int | None = None, number: int = signal.SIGINT) -> Outcome:
    used = setting()
    objective = build_objective("at", used)
    left = [interrupt_at]

    def count(*_: object) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), number)
        left[0] = None if left[0] is None else left[0] - 1

    objective.register_forward_pre_hook(count)
    return train(model(), objective, used, attack_at, images(24, 1), ATTACK, config(), checkpoint=checkpoint)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 5, 8])
def test_an_interrupted_training_saves_its_step_and_ends_with_the_same_weights(
    tmp_path: Path, step: int, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = run(Checkpoint(tmp_path / "whole.pt"))
    path = tmp_path / "run.pt"
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(path), step, number)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert "interrupted: saving a checkpoint after this step" in capfd.readouterr().err
    state, _ = Checkpoint(path).load(CPU) or ({}, {})
    assert state["step"] == step + 1
    resumed = run(Checkpoint(path))
    assert all(torch.equal(resumed.state[k], whole.state[k]) for k in whole.state)


def test_a_second_interrupt_stops_at_once() -> None:
    with interrupts_noted(enabled=True) as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signals_stay_ignored_and_threads_have_none() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_noted(enabled=True) as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGINT, usual)
    found: list[bool] = []

    def work() -> None:
        with interrupts_noted(enabled=True) as interrupted:
            found.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
