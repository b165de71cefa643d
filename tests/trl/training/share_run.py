"""Training runs by however many processes this program is started with; the first writes what came out.

torchrun --nproc-per-node 2 -m tests.trl.training.share_run folder
"""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.tiny_training import THREAT, THREATS, config, images, model
from trl.attacks import build_attack, build_attack_at
from trl.data import ImageSet, TrainingData
from trl.objectives import build_mixed, build_objective
from trl.objectives.base import Objective, Setting
from trl.training import Checkpoint, Outcome, train

Case = tuple[str, str, dict[str, Any], dict[str, Any]]  # network, objective, its options, what training differs in
# Nothing is drawn in these: the attack starts at the image, and a class has two, so that a partner is the other one.
FIXED: dict[str, Case] = {
    "natural": ("mlp", "natural", {}, {}),
    "at": ("mlp", "at", {}, {}),
    "alp": ("strided_cnn", "alp", {}, {"optimizer": {"name": "sgd", "lr": 0.05}, "ema": 0.9}),
    "tla": ("mlp", "tla", {"pool": 13, "margin": 1.0}, {"clip_norm": 1.0}),
    "tla queue": ("mlp", "tla", {"pool": 20, "negative": "queue", "margin": 1.0}, {}),
    "proxies": ("mlp", "tla", {"pool": 20, "metric_loss": "SoftTripleLoss"}, {"clip_norm": 1.0}),
    "pursuit": ("deep_pursuit", "tla", {"pool": 12}, {"epochs": 1}),
    "mart": ("mlp", "mart", {}, {}),
    "awp": ("mlp", "tla", {"pool": 20, "negative": "queue", "margin": 1.0}, {"weight_perturbation": {"gamma": 0.02}}),
    "mixed": ("mlp", "alp", {"gamma": 0.4}, {}),
    "batch norm": ("mnist_cnn", "tla", {"pool": 12}, {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.002}}),
}
DRAWN: dict[str, Case] = {
    "tla": ("mlp", "tla", {"pool": 13, "positive": "both"}, {}),
    "tla few": ("mlp", "tla", {"pool": 2, "margin": 1.0}, {}),  # anchors without a negative
    "tla random": ("mlp", "tla", {"pool": 13, "negative": "random"}, {}),
    "tla queue": ("mlp", "tla", {"pool": 20, "negative": "queue"}, {}),
    "own pools": ("mlp", "tla", {"pool": 12, "share_pool": False, "margin": 1.0}, {}),
    "proxies": ("mlp", "tla", {"pool": 12, "metric_loss": "ProxyAnchorLoss"}, {}),
    "pursuit": ("deep_pursuit", "at", {}, {"ema": 0.9}),
    "trades": ("mlp", "trades", {"beta": 1.0}, {}),
    "minmax": ("mlp", "minmax", {"threats": THREATS}, {}),
    "awp": ("mlp", "tla", {"pool": 13, "positive": "both"}, {"weight_perturbation": {"gamma": 0.02}}),
    "mixed": ("mlp", "tla", {"pool": 12, "metric_loss": "ProxyAnchorLoss", "gamma": 0.4}, {}),
}
RESUMED = ("tla queue", "proxies", "pursuit", "awp", "mixed")
STOP = 7


def fit(
    case: Case, drawn: bool, checkpoint: Checkpoint | None = None, prepare: Callable[[Objective], None] = lambda _: None
) -> tuple[Outcome, Objective]:
    network, name, options, changes = case
    classes = 3 if drawn else 24
    rows = images(48)
    data, more = (
        TrainingData(part if drawn else ImageSet(part.images, torch.arange(48) % classes), "cpu", flip=drawn)
        for part in (rows, images(48, 2))
    )
    net = model(name=network, classes=classes)
    used = Setting(data, THREAT, 0.1, embedding=net.head.in_features)
    mixed = "gamma" in options
    objective = build_mixed(name, used, more, 16, **options) if mixed else build_objective(name, used, **options)
    prepare(objective)
    attack_at = partial(build_attack_at, name="pgd", threat=THREAT, steps=2, step_size=0.08, random_start=drawn)
    outcome = train(
        net,
        objective,
        used,
        attack_at,
        images(24, 1),
        build_attack("pgd", THREAT, steps=2),
        config(**changes),
        checkpoint=checkpoint,
    )
    return outcome, objective


def result(outcome: Outcome, objective: Objective) -> dict[str, Any]:
    """What the first process found, and whether the others found the same, to the bit."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in outcome.history]
    states = [outcome.state, objective.state_dict()]
    sums = [[float(v.double().abs().sum()) for v in state.values()] for state in states]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, (rows, sums))
    alike = all(other == everyones[0] for other in everyones)
    return {"rows": rows, "weights": sum(sums[0]), "own": sum(sums[1]), "alike": alike}


def interrupted(case: Case, path: Path) -> dict[str, Any]:
    """The same run, which all processes leave after `STOP` steps, and go on with."""
    checkpoint, left = Checkpoint(path, seconds=0), [STOP]

    def stop(objective: Objective) -> None:
        def count(*_: object) -> None:
            if left[0] == 0:
                raise InterruptedError
            left[0] -= 1

        objective.register_forward_pre_hook(count)

    try:
        fit(case, True, checkpoint, stop)
    except InterruptedError:
        dist.barrier()
    return result(*fit(case, True, checkpoint))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    folder = Path(sys.argv[1])
    found = {
        "fixed": {name: result(*fit(case, drawn=False)) for name, case in FIXED.items()},
        "drawn": {name: result(*fit(case, drawn=True)) for name, case in DRAWN.items()},
        "resumed": {name: interrupted(DRAWN[name], folder / f"{name}.pt") for name in RESUMED},
    }
    if dist.get_rank() == 0:
        (folder / "out.json").write_text(json.dumps(found))
    dist.destroy_process_group()
