"""Training against several threats: the weights are those of the inner maximum, and its limits are max and average."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tests.helpers.tiny_training import ATTACK, THREATS, images, model, setting
from trl.attacks import build_attack
from trl.common.errors import TrlError
from trl.data import TrainingData
from trl.objectives import build_objective
from trl.objectives.base import Batch, Setting
from trl.objectives.minmax import threat_weights
from trl.threat import L2, Linf


def batch(used: Setting, **options: Any) -> Batch:
    indices = torch.arange(8)
    return Batch(*used.data.take(indices), indices, 0, ATTACK, **options)


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_no_other_weights_give_a_larger_value(seed: int, gamma: float) -> None:
    torch.manual_seed(seed)
    losses = torch.rand(5, 3, dtype=torch.float64) * 4

    def value(weights: torch.Tensor) -> torch.Tensor:
        return (weights * losses).sum(1) - gamma / 2 * (weights - 1 / 3).square().sum(1)

    best = value(threat_weights(losses, gamma, "minmax"))
    others = [torch.eye(3, dtype=torch.float64)[i].expand(5, 3) for i in range(3)]
    others += [(3 * torch.randn(5, 3, dtype=torch.float64)).softmax(1) for _ in range(50)]
    assert all((value(weights) <= best + 1e-9).all() for weights in others)


@pytest.mark.parametrize("gamma", [0.0, 1e-6])
def test_without_gamma_it_is_the_worst_threat_and_with_a_large_one_the_average(gamma: float) -> None:
    torch.manual_seed(0)
    losses = torch.rand(20, 4, dtype=torch.float64)
    torch.testing.assert_close(threat_weights(losses, gamma, "minmax"), threat_weights(losses, 4.0, "max"))
    average = threat_weights(losses, 4.0, "average")
    torch.testing.assert_close(threat_weights(losses, 1e9, "minmax"), average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["minmax", "max", "average"])
def test_value_and_gradient_are_those_of_the_weighted_losses(strategy: Any) -> None:
    class DoubleData(TrainingData):
        def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = super().take(indices)
            return x.double(), y

    net, used = model().double(), Setting(DoubleData(images(48), "cpu"), Linf(0.1), label_smoothing=0.1)
    objective = build_objective("minmax", used, threats=THREATS, gamma=0.3, strategy=strategy)
    b = batch(used)
    torch.manual_seed(1)
    terms = objective(net, b)
    torch.manual_seed(1)
    attacks = [build_attack("pgd", Linf(0.1), steps=10), build_attack("pgd", L2(0.3), steps=3)]
    x_adv = [attack(net, b.x, b.y) for attack in attacks]
    total = torch.zeros(())
    for i in range(8):
        losses = torch.stack([cross_entropy(net(x[i : i + 1]), b.y[i : i + 1], label_smoothing=0.1) for x in x_adv])
        if strategy == "max":
            total = total + losses.max() / 8
        elif strategy == "average":
            total = total + losses.mean() / 8
        else:  # the best of a fine grid of weights
            grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
            weights = torch.stack([grid, 1 - grid], 1)
            values = weights @ losses.detach() - 0.15 * (weights - 0.5).square().sum(1)
            best = weights[values.argmax()]
            total = total + (best @ losses - 0.15 * (best - 0.5).square().sum()) / 8
    torch.testing.assert_close(terms["loss"], total, rtol=0, atol=1e-6)
    ours, theirs = (torch.autograd.grad(loss, list(net.parameters())) for loss in (terms["loss"], total))
    for a, c in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-5)
    assert float(terms["weight_linf"] + terms["weight_l2"]) == pytest.approx(1)
    right = torch.stack([net(x).argmax(1) == b.y for x in x_adv]).all(0)
    assert float(terms["accuracy"]) == pytest.approx(float(right.float().mean()))


def test_the_warm_up_holds_for_every_threat() -> None:
    used, net = setting(), model()
    objective = build_objective("minmax", used, threats=THREATS)
    none = objective(net, batch(used, warmup=0.0))
    b = batch(used)
    clean = float(cross_entropy(net(b.x), b.y))
    assert float(none["ce_linf"].detach()) == pytest.approx(clean, abs=1e-6)
    assert float(none["ce_l2"].detach()) == pytest.approx(clean, abs=1e-6)
    half, whole = (float(objective(net, batch(used, warmup=w))["ce"].detach()) for w in (0.5, 1.0))
    assert clean < half < whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "threats: is missing"),
        ({"threats": {"linf": THREATS["linf"]}}, "threats: .*at least 2 items"),
        ({"threats": THREATS, "gamma": -1}, "gamma: should be greater than or equal to 0, not -1"),
        ({"threats": THREATS | {"l1": {"norm": "l0", "epsilon": 1}}}, "threats.l1.norm: should be"),
        ({"threats": THREATS | {"l1": {"norm": "l1", "eps": 1}}}, "threats.l1.epsilon: is missing"),
        ({"threats": THREATS, "strategy": "worst"}, "strategy: should be 'minmax', 'max' or 'average'"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        build_objective("minmax", setting(), **options)
    assert "\n" not in str(caught.value)
