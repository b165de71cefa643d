"""A fully connected network for `digits` and other tiny images."""

from torch import nn

from trl.common.numbers import Count
from trl.models.base import Classifier, Mean, Shape, Std


def mlp(
    classes: int, shape: Shape, *, width: Count = 256, depth: Count = 2, mean: Mean = (), std: Std = ()
) -> Classifier:
    """`depth` hidden layers of `width` units, each followed by ReLU; the embedding is the last of them."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = shape[0] * shape[1] * shape[2]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return Classifier(nn.Sequential(*layers), width, classes, shape, mean, std)
