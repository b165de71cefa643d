import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trl.data.augment import augment
from trl.nn.parallel import ALONE, Share, current, draw, gather, mean, sharing
from trl.threat import build_threat


def test_alone_nothing_is_exchanged() -> None:
    values = torch.rand(4, 3, requires_grad=True)
    assert current() == ALONE
    assert torch.equal(gather(values), values)
    assert torch.equal(mean(values), values)
    assert not gather(values).requires_grad


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_processes_draw_the_rows_that_one_draws(size: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    whole = draw(torch.empty(size * n, 2), Tensor.normal_)
    parts = []
    for rank in range(size):
        torch.manual_seed(seed)
        with sharing(Share(rank, size)):
            parts.append(draw(torch.empty(n, 2), Tensor.normal_))
            after = torch.rand(1)
    assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(seed)
    draw(torch.empty(size * n, 2), Tensor.normal_)
    assert torch.equal(torch.rand(1), after)  # what is drawn next is the same, too


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_starts_and_augmentation_are_those_of_the_whole_batch(norm: str, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, threat = torch.rand(6, 3, 5, 5).to(memory_format=layout), build_threat(norm, 0.3)

    def change(part: Tensor) -> Tensor:
        torch.manual_seed(3)
        return augment(threat.random_start(part), crop=2, flip=True, saturation=0.4)

    parts = []
    for rank in range(3):
        with sharing(Share(rank, 3)):
            parts.append(change(x[2 * rank : 2 * rank + 2]))
    assert torch.equal(torch.cat(parts), change(x))
