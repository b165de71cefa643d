"""The benchmark of training runs without its peers, and counts what a step needs."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import training
from tests.helpers.absent import hide
from trl.config import load_params
from trl.data import Dataset, ImageSet, load_dataset
from trl.models import build_model

ABSENT = ("torchattacks", "foolbox", "art")
TINY = training.Network("mlp", "mnist", (1, 4, 4), batch=4, turns=1)


def job(recipe: str = "mnist", channels: int = 1) -> training.Job:
    torch.manual_seed(0)
    network = replace(TINY, recipe=recipe, shape=(channels, 4, 4))
    images = ImageSet(torch.randint(256, (80, channels, 4, 4), dtype=torch.uint8), torch.arange(80) % 10)
    model = build_model("mlp", 10, network.shape, width=8)
    return training.Job(network, load_params().recipes[recipe], model, images, "cpu", 0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peers, and little to measure."""

    def few(name: str) -> Dataset:
        dataset = load_dataset(name)
        train, test = (
            ImageSet(part.images[:n], part.labels[:n]) for part, n in ((dataset.train, 250), (dataset.test, 20))
        )
        return Dataset(name, train, test, dataset.classes)

    hide(monkeypatch, *ABSENT)
    monkeypatch.setattr(training, "load_dataset", few)
    monkeypatch.setattr(training, "has_fast_bf16", lambda device: False)
    monkeypatch.setattr(training, "QUICK", training.Sizes((TINY,), product=16, epochs=1, seeds=2))


@pytest.mark.usefixtures("alone")
def test_runs_without_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "training.json"
    training.main(["--quick", "--networks", "mlp", "--device", "cpu", "--out", str(out)])
    found = json.loads(out.read_text())
    (speed,) = found["speed"]
    at = speed["contestants"]["at"]
    assert at["images per second"] == pytest.approx(4000 / at["ms per step"])
    assert at["share of peak"] == pytest.approx(at["flops per second"] / found["peak"]["fp32"])
    assert speed["contestants"]["torchattacks"] is None
    assert speed["ratios"] == {}
    assert speed["costs"]["tla / at"]["passes"] == pytest.approx(91 / 83)
    accuracy = found["accuracy"]
    assert accuracy["seeds"] == [0, 1]
    assert accuracy["trainers"]["torchattacks"] is None
    ours = accuracy["trainers"]["trl"]
    assert all(0 <= robust <= clean <= 1 for robust, clean in zip(ours["robust"], ours["clean"], strict=True))
    assert found["machine"]["cpu"]
    assert out.with_suffix(".png").stat().st_size > 1000
    printed = capsys.readouterr()
    assert printed.out.count("not installed") == 3 + 3 + 1
    assert "turn 1 of 1" in printed.err


@pytest.mark.usefixtures("alone")
def test_refuses_a_network_that_it_does_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--quick", "--networks", "wrn_34_10"])
    assert "choose from mlp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "method", "expected"),
    [
        ("mnist", "um", (1, 0, 1)),
        ("mnist", "at", (40 + 1, 40, 1)),
        ("mnist", "alp", (40 + 2, 40, 2)),
        ("mnist", "tla", (40 + 1 + 1 + 3, 40, 3)),  # anchors and a pool of as many images, then the triplet
        ("mnist", "tla queue", (40 + 2, 40, 2)),  # the queue has the negatives
        ("cifar10", "tla", (7 + 1 + 10 + 4, 7, 4)),  # a pool ten times the batch, and two positives
        ("cifar10", "tla queue", (7 + 3, 7, 3)),
    ],
)
def test_counts_the_passes_of_a_step(recipe: str, method: str, expected: tuple[int, int, int]) -> None:
    passes: Counter[str] = Counter()
    step = training.ours(job(recipe, 3 if recipe == "cifar10" else 1), method, "fp32", passes)
    step()
    step()  # which does not count
    forward, gradient, full = (4 * number for number in expected)
    assert [passes[kind] for kind in training.PASSES] == [forward, gradient, full]
    assert training.forwards(passes) == forward + gradient + 2 * full


@pytest.mark.parametrize(("peer", "module"), [("torchattacks", "torchattacks"), ("foolbox", "foolbox"), ("ART", "art")])
def test_a_step_of_a_peer_trains(peer: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module)
    trained: list[nn.Module] = []

    def optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
        trained.append(model)
        return torch.optim.SGD(model.parameters(), 0.1)

    monkeypatch.setattr(training, "plain_optimizer", optimizer)
    given = job()
    training.PEERS[peer](given)()
    (model,) = trained
    assert model.training
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), given.model.parameters(), strict=True)]
    assert all(changed)


def test_ratios_are_of_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down half-way changes the rates, not the ratios."""
    calls: list[str] = []

    def ours(job: training.Job, method: str, precision: str, passes: Counter[str]) -> training.Step:
        passes.update({"forward": 4 if method == "at" else 6})
        return lambda: calls.append(method)

    def timed(run: Any, device: str) -> float:
        run()
        return {"at": 1.0, "tla": 2.0, "foolbox": 3.0}[calls[-1]] * (10 if len(calls) > 6 else 1)

    monkeypatch.setattr(training, "METHODS", {name: (name, {}) for name in ("at", "tla")})
    monkeypatch.setattr(training, "PEERS", {"foolbox": lambda job: lambda: calls.append("foolbox")})
    monkeypatch.setattr(training, "ours", ours)
    monkeypatch.setattr(training, "timed", timed)
    recipe = load_params().recipes["mnist"]
    found = training.training_speed(replace(TINY, turns=3), recipe, {"fp32": 1e6}, "cpu", 0)
    assert found["ratios"] == {"at / foolbox": 3.0}
    assert found["costs"] == {"tla / at": {"time": 2.0, "passes": 1.5}}
    assert found["contestants"]["at"]["images per second"] == pytest.approx(0.4)
    at, peer = (found["contestants"][name]["flops per second"] for name in ("at", "foolbox"))
    assert at == pytest.approx(3 * peer)  # a peer's step needs what ours does
    assert calls == ["at", "tla", "foolbox"] * 4
