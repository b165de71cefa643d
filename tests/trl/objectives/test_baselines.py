"""TRADES and MART as their papers write them, sample by sample."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_training import THREAT, attack_at, config, images, model, setting
from trl.attacks import build_attack, fgsm
from trl.attacks.build import build_attack_at
from trl.common.errors import TrlError
from trl.data import TrainingData
from trl.objectives import build_objective
from trl.objectives.base import Batch, Setting
from trl.training import train


class DoubleData(TrainingData):
    """In float64, so that 1e-6 is far above rounding."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().take(indices)
        return x.double(), y


def naive_kl(p: Tensor, q: Tensor) -> Tensor:
    return sum((p[k] * (p[k].log() - q[k].log()) for k in range(len(p))), torch.zeros(()))


def naive_trades(clean: Tensor, adversarial: Tensor, y: Tensor, beta: float) -> Tensor:
    rows = zip(clean.softmax(1), adversarial.softmax(1), y, strict=True)
    return sum((-p[t].log() + beta * naive_kl(p, q) for p, q, t in rows), torch.zeros(())) / len(y)


def naive_mart(clean: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
    total = torch.zeros(())
    for p, q, t in zip(clean.softmax(1), adversarial.softmax(1), y, strict=True):
        highest = torch.stack([q[k] for k in range(len(q)) if k != t]).max()
        total = total - q[t].log() - (1 - highest).log() + weight * naive_kl(p, q) * (1 - p[t])
    return total / len(y)


@pytest.mark.parametrize("network", ["mlp", "mnist_cnn"])  # without batch norm, and with it
@pytest.mark.parametrize(
    ("name", "options", "naive"),
    [
        ("trades", {"beta": 6.0}, naive_trades),
        ("trades", {"beta": 0.0}, naive_trades),
        ("mart", {"weight": 5.0}, naive_mart),
        ("mart", {"weight": 0.5}, naive_mart),
    ],
    ids=["trades", "trades-0", "mart", "mart-0.5"],
)
def test_value_and_gradient_are_the_papers(name: str, options: dict[str, float], naive: Any, network: str) -> None:
    net = model(name=network).double()
    used = Setting(DoubleData(images(48), "cpu"), THREAT)
    objective = build_objective(name, used, **options)
    attack = build_attack("pgd", THREAT, steps=3, **objective.attack_options)
    for step in range(2):
        indices = torch.arange(step * 8, step * 8 + 8)
        b = Batch(*used.data.take(indices), indices, step, attack)
        same = copy.deepcopy(net)  # the attack reads batch norm's running statistics, which a pass in training changes
        torch.manual_seed(step)
        ours = objective(net, b)["loss"]
        torch.manual_seed(step)
        x_adv = attack(same, b.x, b.y)
        theirs = naive(same(b.x), same(x_adv), b.y, *options.values())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        ours_g, theirs_g = torch.autograd.grad(ours, net.parameters()), torch.autograd.grad(theirs, same.parameters())
        for a, c in zip(ours_g, theirs_g, strict=True):
            torch.testing.assert_close(a, c, rtol=0, atol=1e-6)


def test_mart_stays_finite_for_a_model_that_is_sure() -> None:
    used, net = setting(), model()
    with torch.no_grad():
        net.head.weight.mul_(1e4)
    indices = torch.arange(8)
    b = Batch(*used.data.take(indices), indices, 0, lambda model, x, y: x.flip(0))
    loss = build_objective("mart", used)(net, b)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_trades_attacks_what_it_trains_on() -> None:
    """The attack that `train` builds for TRADES ascends the divergence from near x, with the recipe's steps."""
    used, made = setting(), []

    def attack_noted(epsilon: float, **options: Any) -> Any:
        made.append(options)
        return attack_at(epsilon, **options)

    train(model(), build_objective("trades", used), used, attack_noted, images(24, 1), attack_at(0.1), config(epochs=1))
    assert made == [{"loss": "kl", "random_start": False}] * 6


def test_an_attack_without_that_loss_is_refused_before_the_first_step() -> None:
    used = setting()

    def attack_at(epsilon: float, **options: Any) -> Any:
        return build_attack_at(epsilon, "fgsm", THREAT, **options)

    objective = build_objective("trades", used)
    with pytest.raises(TrlError, match="attack fgsm: loss: unknown key") as caught:
        train(model(), objective, used, attack_at, images(24, 1), fgsm, config())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
