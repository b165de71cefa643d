"""AWP: the gradient at weights moved against training, with the same adversarial images and the same draws."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny_training import ATTACK, THREAT, THREATS, attack_at, config, images, model, setting
from trl.attacks import build_attack
from trl.data import TrainingData
from trl.nn.parallel import Processes
from trl.objectives import build_objective
from trl.objectives.base import Batch, Objective, Setting
from trl.training import Checkpoint, Outcome, train
from trl.training.loop import Run

GAMMA, RATE = 0.03, 0.1
SGD = {"optimizer": {"name": "sgd", "lr": RATE, "momentum": 0.0}}
FIXED_START = build_attack("pgd", THREAT, steps=2, random_start=False)


class DoubleData(TrainingData):
    """In float64, so that 1e-6 is far above rounding."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().take(indices)
        return x.double(), y


def step(net: nn.Module, objective: Objective, batch: Batch, gamma: float, seed: int = 5) -> None:
    run = Run(net, objective, config(**SGD), torch.device("cpu"), Processes())
    net.train()
    run.update(batch, seed, gamma)


def batch(used: Setting, attack: Any = FIXED_START) -> Batch:
    indices = torch.arange(8)
    return Batch(*used.data.take(indices), indices, 0, attack)


@pytest.mark.parametrize("network", ["mlp", "mnist_cnn"])  # without batch norm, and with it
@pytest.mark.parametrize("name", ["natural", "at", "alp", "mart"])
def test_a_step_is_the_papers(name: str, network: str) -> None:
    """W ← w - rate·∇L(w + v) with v = gamma·‖w‖·∇L(w)/‖∇L(w)‖ for each layer, where L is of the attack at w."""
    net, used = model(name=network).double(), Setting(DoubleData(images(48), "cpu"), THREAT)
    objective, b = build_objective(name, used), batch(used)
    other = copy.deepcopy(net)
    step(net, objective, b, GAMMA)

    x_adv = b.attack(other, b.x, b.y)
    constant = Batch(b.x, b.y, b.indices, 0, lambda model, x, y: x_adv)
    first = copy.deepcopy(other)  # as a proxy, so that its passes leave `other`'s batch norm alone
    gradients = torch.autograd.grad(objective(first, constant)["loss"], list(first.parameters()))
    weights = [p.detach().clone() for p in other.parameters()]
    with torch.no_grad():
        for p, g in zip(other.parameters(), gradients, strict=True):
            if p.ndim > 1:
                p += GAMMA * p.norm() * g / g.norm()
    moved = torch.autograd.grad(objective(other, constant)["loss"], list(other.parameters()))
    for new, old, g in zip(net.parameters(), weights, moved, strict=True):
        torch.testing.assert_close(new, old - RATE * g, rtol=0, atol=1e-6)
    for a, c in zip(net.buffers(), other.buffers(), strict=True):  # batch norm saw one pass, at the moved weights
        torch.testing.assert_close(a, c, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["at", "trades", "tla"])
def test_the_attack_runs_once_and_all_draws_are_repeated(name: str) -> None:
    used, calls = setting(), [0]
    objective = build_objective(name, used, **({"pool": 12, "positive": "both"} if name == "tla" else {}))
    attack = build_attack("pgd", THREAT, steps=2, **objective.attack_options)

    def counted(*arguments: Any) -> Tensor:
        calls[0] += 1
        return attack(*arguments)

    seen: list[dict[str, Tensor]] = []
    objective.register_forward_hook(lambda *a: seen.append(a[-1]))
    step(model(), objective, batch(used, counted), 1e-12)  # weights that hardly move
    assert calls == [1]
    assert len(seen) == 2
    for term, value in seen[0].items():
        assert float(value.detach()) == pytest.approx(float(seen[1][term].detach()), rel=1e-5, abs=1e-6), term


def test_attacks_that_an_objective_makes_run_once_too() -> None:
    used = setting()
    objective = build_objective("minmax", used, threats=THREATS)
    seen: list[dict[str, Tensor]] = []
    objective.register_forward_hook(lambda *a: seen.append(a[-1]))
    net, passes = model(), [0]
    net.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    step(net, objective, batch(used), 1e-12)
    assert passes == [10 + 3 + 2]  # gradients of the attacks, and two passes of the loss
    for term, value in seen[0].items():
        assert float(value.detach()) == pytest.approx(float(seen[1][term].detach()), rel=1e-5, abs=1e-6), term


def test_the_queue_takes_a_step_once() -> None:
    used = setting()
    objective: Any = build_objective("tla", used, pool=40, negative="queue")
    step(model(), objective, batch(used), GAMMA)
    assert int((objective.queue_labels >= 0).sum()) == 8


def test_a_layer_without_gradient_stays_and_weights_come_back_after_an_error() -> None:
    used, net = setting(), model()
    before = copy.deepcopy(net.state_dict())

    class Fails(Objective):
        def forward(self, model: nn.Module, batch: Batch) -> Any:
            if not torch.equal(net.state_dict()["head.weight"], before["head.weight"]):
                raise RuntimeError("the second pass")
            return {"loss": net.head(net.features(batch.x)).square().mean()}

    with pytest.raises(RuntimeError, match="the second pass"):
        step(net, Fails(used), batch(used), GAMMA)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        net.head.weight.zero_()  # then no other layer has a gradient
    step(net, build_objective("natural", used), batch(used), GAMMA)
    assert all(v.isfinite().all() for v in net.state_dict().values())


class Interrupted(Exception):
    """Ends a run in the middle."""


def fit(name: str, checkpoint: Checkpoint | None = None, stop: int = 99, **awp: Any) -> Outcome:
    options = {"pool": 12, "negative": "queue"} if name == "tla" else {}
    used, left = setting(), [2 * stop]  # two passes a step
    objective = build_objective(name, used, **options)

    def count(*_: object) -> None:
        if left[0] <= 0:
            raise Interrupted
        left[0] -= 1

    objective.register_forward_pre_hook(count)
    net = model()
    return train(
        *(net, objective, used, attack_at, images(24, 1), ATTACK, config(weight_perturbation=awp or None)),
        checkpoint=checkpoint,
    )


@pytest.mark.parametrize("name", ["at", "trades", "tla"])
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole, checkpoint = fit(name, gamma=GAMMA), Checkpoint(tmp_path / "run.pt", seconds=0)
    with pytest.raises(Interrupted):
        fit(name, checkpoint, 7, gamma=GAMMA)
    resumed = fit(name, checkpoint, gamma=GAMMA)
    assert all(torch.equal(whole.state[k], resumed.state[k]) for k in whole.state)
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]


def test_it_begins_after_the_warm_up() -> None:
    plain, late, whole = (fit("at", **awp) for awp in ({}, {"gamma": GAMMA, "warmup_epochs": 2}, {"gamma": GAMMA}))
    for name in ("loss", "ce"):
        assert [row[name] for row in late.history[:2]] == [row[name] for row in plain.history[:2]]
        assert late.history[2][name] != plain.history[2][name]
        assert whole.history[0][name] != plain.history[0][name]
