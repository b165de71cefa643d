"""Pre-activation ResNets (He et al., "Identity Mappings in Deep Residual Networks", 2016) for small images."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from trl.models.base import Classifier, Mean, Shape, Std


def preact_resnet18(classes: int, shape: Shape, *, mean: Mean = (), std: Std = ()) -> Classifier:
    """For 32×32 images: 3×3 stem of stride 1, then 2-2-2-2 basic blocks; 512-d embedding."""
    groups = [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)]
    body = preactivation(conv(shape[0], 64, 3), basic_block, groups)
    return Classifier(body, 512, classes, shape, mean, std)


def preact_resnet50(classes: int, shape: Shape, *, mean: Mean = (), std: Std = ()) -> Classifier:
    """For 64×64 images: 3-4-6-3 bottlenecks on maps of 32, 16, 8 and 4 pixels; 2048-d embedding.

    The stem is a 3×3 convolution of stride 2 without max pooling: the ImageNet stem (7×7 of stride 2, then pooling)
    would leave 2×2 pixels in the last group of blocks, and a stem of stride 1 would cost four times as much.
    """
    groups = [(256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2)]
    body = preactivation(conv(shape[0], 64, 3, stride=2), bottleneck, groups)
    return Classifier(body, 2048, classes, shape, mean, std)


def preactivation(
    stem: nn.Conv2d,
    block: Callable[[int, int, int, float], nn.Module],
    groups: Iterable[tuple[int, int, int]],
    leak: float = 0.0,
) -> nn.Sequential:
    """Stem, groups of (width, blocks, stride of the first block), batch norm, global average pooling: → [n, d].

    `leak` is the slope of the activation below zero (0: ReLU). Convolutions use He's normal initialisation.
    """
    layers: list[nn.Module] = [stem]
    inputs = stem.out_channels
    for outputs, blocks, stride in groups:
        for index in range(blocks):
            layers.append(block(inputs, outputs, stride if index == 0 else 1, leak))
            inputs = outputs
    body = nn.Sequential(*layers, *_activate(inputs, leak), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=leak, mode="fan_out")
    return body


class PreActBlock(nn.Module):
    """residual(a) + shortcut, a = activation(norm(x)); the shortcut is x, or a 1×1 convolution of a if sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, leak: float, residual: nn.Module) -> None:
        super().__init__()
        self.activate = nn.Sequential(*_activate(inputs, leak))
        self.residual = residual
        self.shortcut = conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, inputs, h, w] to maps [n, outputs, h / stride, w / stride]."""
        a = self.activate(x)
        return self.residual(a) + (x if self.shortcut is None else self.shortcut(a))


def basic_block(inputs: int, outputs: int, stride: int, leak: float) -> PreActBlock:
    """Two 3×3 convolutions."""
    residual = nn.Sequential(conv(inputs, outputs, 3, stride), *_activate(outputs, leak), conv(outputs, outputs, 3))
    return PreActBlock(inputs, outputs, stride, leak, residual)


def bottleneck(inputs: int, outputs: int, stride: int, leak: float) -> PreActBlock:
    """1×1 down to a quarter of `outputs`, 3×3 with the stride, 1×1 up again."""
    width = outputs // 4
    residual = nn.Sequential(
        conv(inputs, width, 1),
        *_activate(width, leak),
        conv(width, width, 3, stride),
        *_activate(width, leak),
        conv(width, outputs, 1),
    )
    return PreActBlock(inputs, outputs, stride, leak, residual)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width at stride 1; no bias, because a batch norm follows."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _activate(channels: int, leak: float) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.LeakyReLU(leak, inplace=True)
