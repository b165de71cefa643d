"""ResNet (He et al., "Deep Residual Learning", 2016) for small images: torchvision's network with a different stem."""

from torch import nn

from trl.models.base import Classifier, Mean, Shape, Std


def resnet18(classes: int, shape: Shape, *, mean: Mean = (), std: Std = ()) -> Classifier:
    """ResNet-18 in its usual CIFAR form: 3×3 stem of stride 1, no max pooling; 512-d embedding."""
    import torchvision

    body = torchvision.models.resnet18(num_classes=1)
    body.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()
    body.fc = nn.Identity()
    return Classifier(body, 512, classes, shape, mean, std)
