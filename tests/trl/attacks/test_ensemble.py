import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny_models import Threshold, shift
from trl.attacks import Targeted
from trl.attacks.ensemble import Ensemble
from trl.common.errors import TrlError


def test_each_part_gets_what_the_former_left() -> None:
    x, y = torch.tensor([0.1, 0.45, 0.55]).view(-1, 1), torch.tensor([0, 0, 1])
    given: list[int] = []

    def up(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        given.append(len(x))
        return x + 0.1

    both = Ensemble({"down": shift(-0.1), "up": up, "never": up})
    torch.testing.assert_close(both(Threshold(), x, y), torch.tensor([0.2, 0.55, 0.45]).view(-1, 1))
    assert given == [2, 1]
    given.clear()
    both(Threshold(), x[2:], y[2:])
    assert given == []


def test_a_target_is_a_success() -> None:
    x, y = torch.tensor([0.45, 0.55]).view(-1, 1), torch.tensor([1, 1])
    towards = Ensemble({"none": shift(0.0), "up": shift(0.1)}, Targeted())
    torch.testing.assert_close(towards(Threshold(), x, y), torch.tensor([0.55, 0.55]).view(-1, 1))


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(TrlError, match="at least one"):
        Ensemble({})
