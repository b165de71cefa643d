"""Training runs by however many processes this program is started with; the first writes what came out.

torchrun --nproc-per-node 2 -m tests.trl.training.share_run out.json
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.tiny_training import ATTACK, THREAT, attack_at, config, images, model
from trl.data import TrainingData
from trl.objectives import build_objective
from trl.objectives.base import Setting
from trl.training import train

Case = tuple[str, str, dict[str, Any], dict[str, Any]]  # network, objective, its options, what training differs in
CASES: dict[str, Case] = {
    "at": ("mlp", "at", {}, {}),
    "alp": ("strided_cnn", "alp", {}, {"optimizer": {"name": "sgd", "lr": 0.05}, "ema": 0.9}),
    "tla": ("mlp", "tla", {"pool": 13, "positive": "both"}, {"clip_norm": 1.0}),
    "tla few": ("mlp", "tla", {"pool": 2, "margin": 1.0}, {}),  # anchors without a negative
    "tla random": ("mlp", "tla", {"pool": 12, "negative": "random"}, {}),
    "tla queue": ("mlp", "tla", {"pool": 20, "negative": "queue"}, {}),
    "batch norm": ("mnist_cnn", "tla", {"pool": 12}, {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.02}}),
}
OWN_POOLS: Case = ("mlp", "tla", {"pool": 12, "share_pool": False, "margin": 1.0}, {})


def result(case: Case) -> dict[str, Any]:
    network, name, options, changes = case
    data = TrainingData(images(48), "cpu", flip=True)
    used = Setting(data, THREAT, 0.1)
    outcome = train(
        model(name=network),
        build_objective(name, used, **options),
        used,
        attack_at,
        images(24, 1),
        ATTACK,
        config(**changes),
    )
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in outcome.history]
    return {"rows": rows, "weights": float(sum(v.double().abs().sum() for v in outcome.state.values()))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    found = {name: result(case) for name, case in (CASES | {"own pools": OWN_POOLS}).items()}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()
