"""Training on real images and proxies at once, for every objective."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_training import ATTACK, THREATS, config, images, model, setting
from trl.attacks import build_attack, build_attack_at
from trl.common.errors import TrlError
from trl.common.seeds import derive_seed
from trl.data import ShuffledStream, TrainingData
from trl.objectives import OBJECTIVES, build_mixed, build_objective
from trl.objectives.base import Batch, Objective, Setting
from trl.training import Checkpoint, Outcome, train

OPTIONS: dict[str, dict[str, Any]] = {
    "tla": {"pool": 12, "positive": "both"},
    "smoothing": {"sigma": 0.1},
    "minmax": {"threats": THREATS},
}
CASES = [(name, OPTIONS.get(name, {})) for name in OBJECTIVES.names()]
CASES += [("tla", {"pool": 20, "negative": "queue"}), ("tla", {"pool": 12, "metric_loss": "ProxyAnchorLoss"})]


def proxies(stream: bool = False) -> TrainingData:
    return TrainingData(images(60, 5), "cpu", stream=stream)


def mixed(name: str, options: dict[str, Any], gamma: float, size: int = 12, stream: bool = False) -> Any:
    used = setting(label_smoothing=0.1, stream=stream)
    return used, build_mixed(name, used, proxies(stream), size, gamma=gamma, **options)


def fit(
    used: Setting, objective: Objective, network: str = "mlp", checkpoint: Checkpoint | None = None, **changes: Any
) -> Outcome:
    held_out = images(24, 1)
    within = {"threat": objective.threat, "steps": 2}
    attack_at, attack = partial(build_attack_at, name="pgd", **within), build_attack("pgd", **within)
    net = model(name=network)
    return train(net, objective, used, attack_at, held_out, attack, config(**changes), checkpoint=checkpoint)


def same(a: Outcome, b: Outcome) -> bool:
    return all(torch.equal(a.state[k], b.state[k]) for k in a.state)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_with_gamma_1_the_weights_are_those_of_training_without_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    used = setting(label_smoothing=0.1)
    without = fit(used, build_objective(name, used, **options))
    assert same(without, fit(*mixed(name, options, 1)))
    assert not same(without, fit(*mixed(name, options, 0.9)))


def test_with_gamma_1_neither_are_the_statistics_of_batch_norm_touched() -> None:
    used, brief = setting(label_smoothing=0.1), {"network": "mnist_cnn", "epochs": 1}
    without = fit(used, build_objective("at", used), **brief)
    assert same(without, fit(*mixed("at", {}, 1), **brief))


@pytest.mark.parametrize("step", [0, 7])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_loss_and_its_gradient_are_the_weighted_sum(name: str, options: dict[str, Any], step: int) -> None:
    used, objective = mixed(name, options, 0.4)
    net, indices = model(), torch.arange(8) + step
    batch = Batch(*used.data.take(indices), indices, step, ATTACK)
    own = Setting(proxies(), used.threat, 0.1, embedding=used.embedding)
    theirs = ShuffledStream(60, 12, derive_seed(0, "proxies")).indices(step)
    alone = [build_objective(name, each, **options) for each in (used, own)]
    for module, (_, child) in zip(alone[1].children(), alone[0].named_children(), strict=True):
        module.load_state_dict(child.state_dict())
    torch.manual_seed(1)
    losses = [
        alone[0](net, batch)["loss"],
        alone[1](net, Batch(*own.data.take(theirs), theirs, step, ATTACK))["loss"],
    ]
    expected = 0.4 * losses[0] + 0.6 * losses[1]
    gradients = torch.autograd.grad(expected, list(net.parameters()))
    torch.manual_seed(1)
    terms = objective(net, batch)
    assert terms["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert (terms["real_loss"], terms["proxy_loss"]) == tuple(losses)
    for found, wanted in zip(torch.autograd.grad(terms["loss"], list(net.parameters())), gradients, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_weights_of_a_loss_are_one_set() -> None:
    _, objective = mixed("tla", {"pool": 12, "metric_loss": "SoftTripleLoss"}, 0.4)
    assert [*objective.proxy.parameters()] == [*objective.real.parameters()] != []


@cache
def whole() -> Outcome:
    return fit(*mixed("tla", {"pool": 20, "negative": "queue"}, 0.4))


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, stop: int) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", seconds=0)
    used, objective = mixed("tla", {"pool": 20, "negative": "queue"}, 0.4)
    objective.register_forward_pre_hook(counter(stop))
    with pytest.raises(InterruptedError):
        fit(used, objective, checkpoint=checkpoint)
    torch.manual_seed(99)
    resumed = fit(*mixed("tla", {"pool": 20, "negative": "queue"}, 0.4), checkpoint=checkpoint)
    assert same(whole(), resumed)


def counter(stop: int) -> Callable[..., None]:
    left = [stop]

    def count(*_: object) -> None:
        if left[0] == 0:
            raise InterruptedError
        left[0] -= 1

    return count


def test_proxies_that_are_streamed_train_the_same_weights() -> None:
    assert same(whole(), fit(*mixed("tla", {"pool": 20, "negative": "queue"}, 0.4, stream=True)))


def test_the_best_epoch_is_chosen_as_without() -> None:
    assert mixed("natural", {}, 0.4)[1].selects == "val_clean"


def test_too_few_proxies_are_one_line() -> None:
    with pytest.raises(TrlError, match="a step takes 61 images of the proxy, which has 60; make more"):
        mixed("at", {}, 0.4, size=61)
