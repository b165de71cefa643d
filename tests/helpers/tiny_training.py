"""A tiny training run, quick enough for a unit test: three blobs as images, a small MLP, a short PGD."""

from functools import partial

import torch

from trl.attacks import build_attack, build_attack_at
from trl.config import Train
from trl.data import ImageSet, TrainingData
from trl.models import Classifier, build_model
from trl.objectives.base import Setting
from trl.threat import Linf

THREAT = Linf(0.1)
# of several norms, for the objective minmax
THREATS = {"linf": {"norm": "linf", "epsilon": 0.1}, "l2": {"norm": "l2", "epsilon": 0.3, "steps": 3}}
EMBEDDING = 16  # of the MLP below
ATTACK = build_attack("pgd", THREAT, steps=2)
attack_at = partial(build_attack_at, name="pgd", threat=THREAT, steps=2, step_size=0.08)


def images(n: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    noise = torch.randint(0, 120, (n, 1, 4, 4), generator=generator)
    noise[torch.arange(n), 0, labels] += 100  # class k has a bright row k
    return ImageSet(noise.to(torch.uint8), labels)


def setting(n: int = 48, seed: int = 0, label_smoothing: float = 0.0, stream: bool = False) -> Setting:
    return Setting(TrainingData(images(n), "cpu", stream=stream), THREAT, label_smoothing, seed, EMBEDDING)


def model(seed: int = 0, name: str = "mlp", classes: int = 3) -> Classifier:
    torch.manual_seed(seed)
    options = {"width": EMBEDDING} if name == "mlp" else {}
    return build_model(name, classes, (1, 4, 4), **options)


def config(**changes: object) -> Train:
    values: dict[str, object] = {
        "epochs": 3,
        "batch_size": 8,
        "optimizer": {"lr": 0.01},
        "attack": {"name": "pgd", "steps": 2},
        "validation": {"attack": {"name": "pgd", "steps": 2}},
    }
    return Train.model_validate(values | changes)
