import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tiny_training import setting
from trl.common.seeds import derive_seed
from trl.nn.parallel import Processes, processes
from trl.objectives.base import Setting
from trl.training.loop import step_seed


def test_alone_nothing_is_exchanged() -> None:
    alone, values = processes(), torch.rand(4, 3, requires_grad=True)
    assert alone == Processes(rank=0, size=1)
    assert torch.equal(alone.rows(values), values)
    assert torch.equal(alone.gather(values), values)
    assert torch.equal(alone.mean(values), values)
    assert not alone.gather(values).requires_grad


@given(st.integers(1, 6), st.integers(1, 20))
def test_the_parts_are_equally_long_and_make_up_the_whole(size: int, n: int) -> None:
    values = torch.arange(n)
    parts = [Processes(rank, size).rows(values) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    assert torch.equal(torch.cat(parts)[:n], values)
    assert len(parts[0]) * size < n + size  # no more than it takes


@pytest.mark.parametrize("seed", [0, 3])
def test_a_step_has_a_seed_for_each_process_and_alone_the_one_without_a_rank(seed: int) -> None:
    def of(processes: Processes, step: int) -> int:
        alone = setting(seed=seed)
        return step_seed(Setting(alone.data, alone.threat, seed=seed, processes=processes), step)

    assert of(Processes(), 7) == derive_seed(seed, "step", 7)
    seeds = {of(Processes(rank, 4), step) for rank in range(4) for step in range(5)} | {of(Processes(), 7)}
    assert len(seeds) == 21
