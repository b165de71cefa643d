"""The MNIST network of Mao et al., "Metric Learning for Adversarial Robustness" (NeurIPS 2019), supplement."""

from torch import nn

from trl.models.base import Classifier, Mean, Shape, Std


def mnist_cnn(classes: int, shape: Shape, *, mean: Mean = (), std: Std = ()) -> Classifier:
    """Four 3×3 convolutions (32, 64, pool, 128, 256, pool) and a 1024-d embedding; batch norm and ReLU after each."""
    pooled = (shape[1] // 4) * (shape[2] // 4)
    body = nn.Sequential(
        *_conv(shape[0], 32),
        *_conv(32, 64),
        nn.MaxPool2d(2),
        *_conv(64, 128),
        *_conv(128, 256),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256 * pooled, 1024, bias=False),
        nn.BatchNorm1d(1024),
        nn.ReLU(inplace=True),
    )
    return Classifier(body, 1024, classes, shape, mean, std)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    # no bias: the batch norm that follows has one
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
