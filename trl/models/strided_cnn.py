"""The small MNIST network of Wong, Rice & Kolter, "Fast is better than free" (ICLR 2020); no batch norm."""

from torch import nn

from trl.models.base import Classifier, Mean, Shape, Std
from trl.models.stem import Stem


def strided_cnn(classes: int, shape: Shape, *, mean: Mean = (), std: Std = ()) -> Classifier:
    """Two 4×4 convolutions of stride 2 (16 and 32 filters) and a 100-d embedding, each followed by ReLU."""
    body = nn.Sequential(
        Stem(shape[0], 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (shape[1] // 4) * (shape[2] // 4), 100),
        nn.ReLU(),
    )
    return Classifier(body, 100, classes, shape, mean, std)
