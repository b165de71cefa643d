"""Every registered architecture, small enough for quick tests."""

from functools import cache

import torch
from torch import Tensor, nn

from trl.models import MODELS, Classifier, build_model

SMALLEST = {"wrn_*": "wrn_10_1"}
NAMES = [SMALLEST.get(name, name) for name in MODELS.names()]
COLOUR = (3, 8, 8)
GREY = (1, 8, 8)


def shape_of(name: str) -> tuple[int, int, int]:
    return GREY if name in ("mlp", "mnist_cnn", "strided_cnn") else COLOUR


@cache
def model(name: str) -> Classifier:
    """A model in eval mode whose batch norms have statistics as after some training; shared: do not change it."""
    torch.manual_seed(0)
    classifier = build_model(name, 10, shape_of(name)).eval()
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return classifier


def images(name: str, n: int = 3) -> Tensor:
    return torch.rand(n, *shape_of(name), generator=torch.Generator().manual_seed(1))
