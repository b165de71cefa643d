"""Adversarial images as 8 bits keep them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.evaluation import evaluate
from trl.evaluation.eight_bit import is_eight_bit, to_eight_bit
from trl.threat import Linf, build_threat


@given(norm=st.sampled_from(["linf", "l2", "l1"]), epsilon=st.floats(0, 0.5), seed=st.integers(0, 2**32 - 1))
def test_rounded_images_stay_in_the_ball(norm: str, epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (5, 1, 4, 4), generator=generator) / 255
    threat = build_threat(norm, epsilon)
    x_adv = threat.project(torch.rand(x.shape, generator=generator), x)
    rounded = to_eight_bit(x_adv, x, threat)
    assert is_eight_bit(rounded)
    assert float(threat.excess(rounded, x).max()) == 0
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    assert float((rounded - x_adv).abs().max()) < 1 / 255


def test_on_the_grid_nothing_changes() -> None:
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    x_adv = Linf(8 / 255).project(x + 8 / 255, x)
    assert torch.equal((to_eight_bit(x_adv, x, Linf(8 / 255)) * 255).round(), (x_adv * 255).round())


class Edge(nn.Module):
    """Class 1 where the only pixel is above 100.4 of 255."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) * 255 - 100.4
        return torch.cat([-x, x], 1)


def test_only_what_survives_rounding_counts() -> None:
    x, y = torch.full((2, 1, 1, 1), 100, dtype=torch.uint8), torch.tensor([0, 0])

    def barely(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.tensor([0.45, 0.6]).view(-1, 1, 1, 1) / 255

    attacks = {"barely": barely}
    assert evaluate(Edge(), x, y, attacks, Linf(0.1), checks=False).worst.tolist() == [False, False]
    found = evaluate(Edge(), x, y, attacks, Linf(0.1), checks=False, eight_bit=True)
    assert found.worst.tolist() == [True, False]
    assert (found.adversarials * 255).flatten().round().tolist() == [100, 101]
    assert is_eight_bit(found.adversarials)


def test_images_of_more_than_8_bits_are_refused() -> None:
    x, y = torch.tensor([100 / 255, 100 / 255, 0.3001]).view(3, 1, 1, 1), torch.tensor([0, 0, 0])

    def never(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise AssertionError  # no attack is spent on them

    with pytest.raises(TrlError, match="not 8-bit"):
        evaluate(Edge(), x, y, {"never": never}, Linf(0.1), batch_size=1, checks=False, eight_bit=True)


@pytest.mark.parametrize(("amount", "names_rounding"), [(0.5 / 255, True), (3 / 255, False)])
def test_the_message_names_rounding_where_that_is_all(amount: float, names_rounding: bool) -> None:
    x, y = torch.full((2, 1, 1, 1), 100, dtype=torch.uint8), torch.tensor([0, 0])
    epsilon = 10 / 255 - amount  # which a step of 10 levels leaves

    def stored(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x + 10 / 255

    with pytest.raises(TrlError, match="leaves the linf ball") as error:
        evaluate(Edge(), x, y, {"png": stored}, Linf(epsilon), checks=False)
    assert ("8-bit" in str(error.value)) is names_rounding
