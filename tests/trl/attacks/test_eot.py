"""Expectation over transformation: exact on a known sequence of draws, and stronger on a model that draws."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers.masked_models import THREAT, Noisy, robust, trained
from trl.attacks import EoT, fgsm, pgd
from trl.attacks.base import ascent
from trl.attacks.losses import LOSSES
from trl.attacks.square import square
from trl.common.errors import TrlError
from trl.threat import Linf


class Turns(nn.Module):
    """A linear layer per call, by turns; counts its calls."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        self.layers, self.calls = nn.ModuleList(layers), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers[self.calls % len(self.layers)](x)


@pytest.fixture
def turns() -> Turns:
    torch.manual_seed(0)
    return Turns(*(nn.Linear(6, 4) for _ in range(3)))


def test_outputs_are_the_mean_logits(turns: Turns) -> None:
    x = torch.rand(5, 6)
    expected = torch.stack([layer(x) for layer in turns.layers]).mean(0)
    torch.testing.assert_close(EoT(turns, 3)(x), expected)
    torch.testing.assert_close(EoT(turns, 6)(x), expected)
    assert turns.calls == 9


@pytest.mark.parametrize("loss", LOSSES)
def test_attacks_get_the_mean_gradient_of_the_loss(turns: Turns, loss: str) -> None:
    x, y = torch.rand(5, 6), torch.tensor([0, 1, 2, 3, 0])
    point = x.clone().requires_grad_()
    losses = torch.stack([LOSSES[loss](layer(point), y) for layer in turns.layers]).mean(0)
    (gradient,) = torch.autograd.grad(losses.sum(), point)
    found = ascent(EoT(turns, 3), x, y, LOSSES[loss], 4)
    torch.testing.assert_close(found.gradient, gradient)
    torch.testing.assert_close(found.loss, losses.detach())
    torch.testing.assert_close(found.outputs, EoT(turns, 3)(x).detach())
    assert turns.calls == 6


def test_the_gradient_of_the_mean_logits_is_another_one_and_there_too(turns: Turns) -> None:
    x, y = torch.rand(5, 6), torch.tensor([0, 1, 2, 3, 0])
    point = x.clone().requires_grad_()
    cross_entropy(EoT(turns, 3)(point), y, reduction="sum").backward()
    assert point.grad is not None
    assert not torch.allclose(point.grad, ascent(EoT(turns, 3), x, y, LOSSES["ce"], 4).gradient, rtol=1e-2)


def test_without_randomness_nothing_changes() -> None:
    model, x, y = trained()
    torch.testing.assert_close(fgsm(EoT(model, 4), x, y, THREAT), fgsm(model, x, y, THREAT))
    assert torch.equal(fgsm(EoT(model, 1), x, y, THREAT), fgsm(model, x, y, THREAT))


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)).train()
    model[1].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, x, y = trained()
    fgsm(EoT(model), x, y, THREAT)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]


def test_it_sees_through_noise_that_hides_the_gradient_of_one_draw() -> None:
    model, x, y = trained()
    noisy = Noisy(model)
    torch.manual_seed(0)
    plain = robust(model, pgd(model, x, y, THREAT), y)
    one_draw = robust(noisy, pgd(noisy, x, y, THREAT), y)
    expected = robust(noisy, pgd(EoT(noisy, 20), x, y, THREAT), y)
    assert one_draw > plain + 0.3
    assert expected < plain + 0.05


def test_a_search_without_gradients_sees_the_mean() -> None:
    """Else it keeps what was lucky in one draw."""
    model, x, y = trained()
    noisy = Noisy(model)
    search = partial(square, x=x[:100], y=y[:100], threat=THREAT, queries=100)
    torch.manual_seed(0)
    lucky, expected = (robust(noisy, search(seen), y[:100]) for seen in (noisy, EoT(noisy, 10)))
    assert expected < lucky - 0.05


@pytest.mark.parametrize("samples", [0, -3])
def test_no_draws(samples: int) -> None:
    with pytest.raises(TrlError, match="samples of at least 1"):
        EoT(nn.Identity(), samples)


def test_empty_batch() -> None:
    model, x, y = trained()
    assert pgd(EoT(model), x[:0], y[:0], Linf(0.1)).shape == (0, 1, 8, 8)
