import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.tiny_training import ATTACK, EMBEDDING, THREAT, THREATS, attack_at, config, images, model, setting
from trl.attacks import Attack, build_attack, build_attack_at
from trl.common.errors import TrlError
from trl.config import Optimizer, Schedule
from trl.objectives import build_objective
from trl.objectives.base import Objective
from trl.training import Checkpoint, Outcome, train
from trl.training.optimizer import build_optimizer
from trl.training.schedule import rate_factor

CHANGES: tuple[dict[str, Any], ...] = ({}, {"ema": 0.9, "optimizer": {"name": "sgd", "lr": 0.1}})


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def stop_after(steps: int, objective: Objective) -> None:
    left = [steps]

    def count(*_: object) -> None:
        if left[0] == 0:
            raise Interrupted
        left[0] -= 1

    objective.register_forward_pre_hook(count)


def fit(
    name: str = "tla",
    checkpoint: Checkpoint | None = None,
    stop: int | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    stream: bool = False,
    **changes: Any,
) -> tuple[Outcome, list[dict[str, Any]]]:
    used, rows = setting(label_smoothing=0.1, stream=stream), []
    objective: Any = build_objective(name, used, **({"pool": 12} if name == "tla" else {}), **options)
    if stop is not None:
        stop_after(stop, objective)
    outcome = train(
        model(),
        objective,
        used,
        attack_at,
        images(24, 1),
        ATTACK,
        config(**changes),
        checkpoint=checkpoint,
        on_epoch=rows.append,
    )
    return outcome, rows


@cache
def whole_run(average: bool) -> tuple[Outcome, list[dict[str, Any]]]:
    """A run that nothing interrupts."""
    return fit(**CHANGES[average])


def same(a: Outcome, b: Outcome) -> bool:
    return a.state.keys() == b.state.keys() and all(torch.equal(a.state[k], b.state[k]) for k in a.state)


@pytest.mark.parametrize("stop", [0, 1, 6, 7, 13, 18])
@pytest.mark.parametrize("average", [False, True], ids=["adam", "ema+sgd"])
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, stop: int, average: bool) -> None:
    (whole, rows), changes = whole_run(average), CHANGES[average]
    checkpoint = Checkpoint(tmp_path / "run.pt", seconds=0)
    if stop < 18:
        with pytest.raises(Interrupted):
            fit(checkpoint=checkpoint, stop=stop, **changes)
    else:  # finished, but killed before its results were written
        fit(checkpoint=checkpoint, **changes)
    torch.manual_seed(99)  # the state of the generator at the restart does not matter
    resumed, rows_again = fit(checkpoint=checkpoint, **changes)
    assert same(whole, resumed)
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in r] for r in (rows, rows_again)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("stop", [0, 1, 7])
@pytest.mark.parametrize(
    "options",
    [{"negative": "queue"}, {"metric_loss": "ProxyAnchorLoss"}, {"metric_loss": "SoftTripleLoss", "negative": "queue"}],
    ids=str,
)
def test_an_interrupted_run_finds_its_objectives_queue_and_weights_again(
    tmp_path: Path, options: dict[str, Any], stop: int
) -> None:
    changes = {"optimizer": {"lr": 0.01, "weight_decay": 0.01, "name": "adamw"}, "clip_norm": 1.0}
    whole, _ = fit(options=options, **changes)
    checkpoint = Checkpoint(tmp_path / "run.pt", seconds=0)
    with pytest.raises(Interrupted):
        fit(checkpoint=checkpoint, stop=stop, options=options, **changes)
    assert same(whole, fit(checkpoint=checkpoint, options=options, **changes)[0])


def test_the_weights_of_a_metric_loss_are_trained() -> None:
    used = setting()
    objective = build_objective("tla", used, pool=12, metric_loss="SoftTripleLoss")
    before = [p.clone() for p in objective.parameters()]
    net = model()
    outcome = train(net, objective, used, attack_at, images(24, 1), ATTACK, config())
    assert [p.shape for p in before] == [(EMBEDDING, 3 * 10)]  # ten centres a class
    assert all(not torch.equal(p, q) for p, q in zip(objective.parameters(), before, strict=True))
    assert outcome.state.keys() == net.state_dict().keys()  # they are no part of the model
    assert outcome.history[-1]["triplet"] < outcome.history[0]["triplet"]


def test_images_streamed_from_where_they_lie_train_the_same_weights() -> None:
    assert same(fit(stream=True)[0], whole_run(False)[0])


def test_a_resumed_run_does_not_repeat_finished_steps(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", seconds=0)
    with pytest.raises(Interrupted):
        fit(checkpoint=checkpoint, stop=10)
    with pytest.raises(Interrupted):
        fit(checkpoint=checkpoint, stop=7)  # 10 + 7 of 18 steps
    fit(checkpoint=checkpoint, stop=1)


def test_another_seed_is_another_run() -> None:
    used = setting(seed=1)
    objective = build_objective("at", used)
    other = train(model(), objective, used, attack_at, images(24, 1), ATTACK, config())
    assert not same(other, fit("at")[0])


@pytest.mark.parametrize("name", ["natural", "at", "alp", "trades", "mart", "minmax", "tla"])
def test_training_learns(name: str) -> None:
    outcome, rows = fit(name, options={"threats": THREATS} if name == "minmax" else {}, epochs=12)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert outcome.best["val_clean"] > 0.9
    assert [row["epoch"] for row in rows] == list(range(1, 13))


def test_the_best_validated_epoch_is_kept() -> None:
    outcome, rows = fit("at", epochs=6, optimizer={"lr": 0.3}, validation={"every": 2, "attack": {"name": "fgsm"}})
    validated = [row for row in rows if row["val_robust"] is not None]
    assert [row["epoch"] for row in validated] == [2, 4, 6]
    assert outcome.best["val_robust"] == max(row["val_robust"] for row in validated)
    net = model()
    net.load_state_dict(outcome.state)
    held_out = images(24, 1)
    clean = (net(held_out.images / 255).argmax(1) == held_out.labels).float().mean()
    assert float(clean) == pytest.approx(outcome.best["val_clean"])


def test_an_undefended_model_is_chosen_by_clean_accuracy() -> None:
    outcome, rows = fit("natural", epochs=6)
    assert outcome.best["val_clean"] == max(row["val_clean"] for row in rows)


@pytest.mark.parametrize("changes", [{"optimizer": {"lr": 1e30}}, {"optimizer": {"name": "sgd", "lr": 1e20}}], ids=str)
def test_a_diverging_run_says_so_and_keeps_its_checkpoint_finite(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", seconds=0)
    with pytest.raises(TrlError, match=r"training diverged: .* in epoch 1 .*lower train.optimizer.lr") as caught:
        fit(checkpoint=checkpoint, **changes)
    assert "\n" not in str(caught.value)
    if checkpoint.path.exists():
        state = torch.load(checkpoint.path, weights_only=True)
        assert all(v.isfinite().all() for v in state["model"].values())


def test_gradient_clipping_bounds_the_step() -> None:
    before = torch.cat([p.flatten() for p in model().parameters()])
    options = {"epochs": 1, "batch_size": 48, "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0}}
    for clip in (None, 0.01):
        state = fit("at", clip_norm=clip, **options)[0].state
        moved = float((torch.cat([v.flatten() for v in state.values()]) - before).detach().norm())
        assert (moved <= 0.01 + 1e-6) == (clip is not None)


def test_ema_weights_are_the_average() -> None:
    raw, averaged = (fit("at", epochs=1, ema=ema)[0].state for ema in (None, 0.9))
    assert not all(torch.equal(raw[k], averaged[k]) for k in raw)


def test_bf16_trains_close_to_fp32() -> None:
    low, _ = fit("tla", precision="bf16", epochs=10, optimizer={"lr": 0.02})
    assert low.best["val_clean"] > 0.9
    assert all(v.dtype == torch.float32 for v in low.state.values())


def test_weight_decay_acts_on_weights_only() -> None:
    net = model(name="mlp")
    optimizer = build_optimizer(net, Optimizer(lr=0.1, weight_decay=0.5, name="sgd"))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {k: v.clone() for k, v in net.named_parameters()}
    optimizer.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 1), name


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """As on a full disk, a write fails part-way: no file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path) -> None:
    whole, _ = whole_run(False)
    checkpoint = Checkpoint(tmp_path / "run.pt", seconds=0)
    with pytest.raises(Interrupted):
        fit(checkpoint=checkpoint, stop=9)
    former = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with files_limited_to(1000), pytest.raises(TrlError, match=r"run.pt: cannot be written \(.*old version is kept"):
        fit(checkpoint=checkpoint)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == former  # no half-written file stays behind
    assert same(whole, fit(checkpoint=checkpoint)[0])


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(TrlError, match=r"run.pt: damaged checkpoint .*delete it"):
        fit(checkpoint=Checkpoint(path))


def test_schedules_at_known_points() -> None:
    steps = Schedule(name="steps", milestones=(5, 8), gamma=0.1)
    assert [rate_factor(steps, e, 10) for e in (0, 4.9, 5, 8)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = Schedule(name="cosine")
    assert [rate_factor(cosine, e, 10) for e in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    triangle = Schedule(name="triangle", warmup_epochs=4)
    assert [rate_factor(triangle, e, 10) for e in (0, 2, 4, 7, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert rate_factor(Schedule(warmup_epochs=2), 1, 10) == 0.5


@given(st.sampled_from(["constant", "steps", "cosine", "triangle"]), st.floats(0, 10), st.floats(0, 5))
def test_rate_factor_stays_in_0_to_1(name: Any, epoch: float, warmup: float) -> None:
    schedule = Schedule(name=name, milestones=(3, 6), warmup_epochs=warmup)
    assert 0 <= rate_factor(schedule, epoch, 10) <= 1


def test_epsilon_warms_up_to_the_threats() -> None:
    used, seen = setting(), []

    def attack_seen(epsilon: float) -> Any:
        seen.append(epsilon)
        return attack_at(epsilon)

    changed = config(epsilon_warmup_epochs=1.5)
    train(model(), build_objective("at", used), used, attack_seen, images(24, 1), ATTACK, changed)
    assert seen == pytest.approx([min(0.1, 0.1 * step / 9) for step in range(18)])


def test_training_attacks_stay_inside_the_objectives_region() -> None:
    seen: list[Tensor] = []

    def attack_seen(epsilon: float) -> Attack:
        attack = build_attack_at(epsilon, "pgd", objective.threat, steps=1)

        def seeing(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            x_adv = attack(net, x, y)
            seen.append((x_adv != x) & (x >= 0.3))
            return x_adv

        return seeing

    used = setting()
    objective = build_objective("localized", used, region={"name": "background", "threshold": 0.3})
    validation = build_attack("pgd", objective.threat, steps=1)
    outcome = train(model(), objective, used, attack_seen, images(24, 1), validation, config())
    assert not torch.cat(seen).any()
    assert outcome.best["clean_ce"] > 0
    with pytest.raises(TrlError, match="attack 'validation' leaves the region"):
        train(model(), objective, used, attack_seen, images(24, 1), build_attack("pgd", THREAT), config())


def test_a_region_that_is_empty_in_a_batch() -> None:
    used = setting()
    objective = build_objective("localized", used, region={"name": "background", "threshold": 0})
    with pytest.raises(TrlError, match="the training region is empty in every image of a batch; check its name"):
        train(model(), objective, used, attack_at, images(24, 1), ATTACK, config())
