"""Modules that are not ours are read like ours."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from trl.attacks import Both, Misclassified, Undetected, apgd
from trl.common.errors import TrlError
from trl.data.base import ImageSet
from trl.detection.adaptive import answers, fit_calibrated
from trl.detectors import build_detector
from trl.detectors.base import Layer, Reads
from trl.detectors.observe import observe
from trl.models import build_model
from trl.threat import Linf


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.2


class Net(nn.Module):
    """A block of somebody's, a head that is registered first and called by keyword, and a classifier of 4 classes."""

    def __init__(self, trunk: nn.Module, embedding: int) -> None:
        super().__init__()
        self.head, self.trunk = nn.Linear(embedding, 4), trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.trunk(x)).log_softmax(1)


class Mixer(nn.Module):
    """Its last linear layer answers for each patch; the answers are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.patches(x).flatten(2).mT).mean(1)


def resnet(**options: int) -> nn.Module:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], **options)


def convolutions(*head: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2)), *head
    )


class TrunkOfResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = resnet()
        self.net.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


# per network: how it is made, the last linear layer, and the layers that are read beside its input
MADE: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "resnet": (lambda: resnet(num_classes=4), "fc", ["relu", "layer1", "layer2", "layer3"]),
    "vit": (
        lambda: models.VisionTransformer(16, 8, 2, 2, 12, 20, num_classes=4),
        "heads.head",
        ["encoder.layers.encoder_layer_1"],
    ),
    "densenet": (
        lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=4),
        "classifier",
        ["features.relu0", *(f"features.transition{i}.relu" for i in (1, 2, 3))],
    ),
    "mobilenet": (
        lambda: models.mobilenet_v3_small(num_classes=4),
        "classifier.3",
        [f"features.{i}" for i in (0, 1, 3, 6, 8, 11, 12)],
    ),
    "sequential": (
        lambda: convolutions(
            *(nn.Flatten(), nn.Linear(24, 9), nn.Tanh(), nn.Dropout(), nn.Linear(9, 4), nn.Softmax(1))
        ),
        "10",
        ["1", "4"],
    ),
    "trunk": (
        lambda: Net(TrunkOfResNet(), 512),
        "head",
        [f"trunk.net.{path}" for path in ("relu", "layer1", "layer2", "layer3")],
    ),
    "mixer": (Mixer, "head", []),
}
networks = pytest.mark.parametrize("name", MADE)


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size = 32 if name == "densenet" else 16
    return MADE[name][0]().eval(), torch.rand(3, 3, size, size)


def pooled(value: Tensor) -> Tensor:
    return value.clone() if value.ndim == 2 else value.mean(1) if value.ndim == 3 else value.mean((2, 3))


def by_hand(model: nn.Module, x: Tensor, head: str, layers: list[str]) -> list[Tensor]:
    """What the layers give and the head takes, pooled."""
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(pooled(output)))
        for path in layers
    ]
    handles.append(
        model.get_submodule(head).register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(pooled([*args, *kwargs.values()][0])), with_kwargs=True
        )
    )
    model(x)
    for handle in handles:
        handle.remove()
    return seen


@networks
def test_what_is_read(name: str) -> None:
    model, x = made(name)
    _, head, layers = MADE[name]
    expected = by_hand(model, x, head, layers)
    for reads, parts in (("features", expected[-1:]), ("layers", expected)):
        for module in (model, nn.DataParallel(model)):
            logits, seen = observe(module, x, reads)
            assert torch.equal(logits, model(x))
            torch.testing.assert_close(seen, torch.cat(parts, 1), rtol=0, atol=0)
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(observe(model, images, reads)[1].square().sum(), images)
        assert gradient.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(observe(model, x, "logits")[1], model(x))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("reads", ["features", "layers"])
def test_a_normalisation_before_it_changes_nothing_else(reads: Reads) -> None:
    model, x = made("resnet")
    both = nn.Sequential(Normalise(), model)
    assert torch.equal(observe(both, x, reads)[1], observe(model, (x - 0.5) / 0.2, reads)[1])
    assert torch.equal(observe(both, x, Layer("1.layer2"))[1], observe(model, (x - 0.5) / 0.2, Layer("layer2"))[1])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("resnet", "layer2"),
        ("resnet", "layer2.0.bn2"),
        ("vit", "encoder"),
        ("vit", "encoder.layers.encoder_layer_0.mlp"),
        ("densenet", "features"),  # a layer of that name, not what `reads` calls so
        ("mobilenet", "classifier.0"),
        ("sequential", "6"),
    ],
)
def test_layers_by_their_path(name: str, path: str) -> None:
    model, x = made(name)
    expected = by_hand(model, x, MADE[name][1], [path])[0]
    logits, seen = observe(model, x, Layer(path))
    assert torch.equal(logits, model(x))
    assert torch.equal(seen, expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_whose_output_is_changed_in_place() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), torch.rand(5, 8)
    seen = observe(model, x, Layer("1"))[1]
    assert seen.min() < 0
    assert torch.equal(seen, model[1](x))


def test_of_several_runs_of_a_layer_the_last_counts() -> None:
    torch.manual_seed(0)
    shared = nn.ReLU()
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), shared, nn.Linear(6, 5), shared, nn.Linear(5, 2)), None
    x = torch.rand(3, 1, 2, 4)
    assert torch.equal(observe(model, x, Layer("2"))[1], model[:5](x))
    assert torch.equal(observe(model, x, "layers")[1], torch.cat([model[:3](x), model[:5](x)], 1))


@pytest.mark.parametrize("reads", ["features", "layers", Layer("body.1")])
@pytest.mark.parametrize("wrap", [torch.compile, AveragedModel, lambda net: nn.DataParallel(torch.compile(net))])
def test_wrappers_are_seen_through(wrap: Callable[[nn.Module], nn.Module], reads: Reads) -> None:
    torch.manual_seed(0)
    model, x = build_model("strided_cnn", 4, (1, 16, 16)).eval(), torch.rand(3, 1, 16, 16)
    for one, other in zip(observe(wrap(model), x, reads), observe(model, x, reads), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("reads", ["features", "layers", Layer("body.1")])
def test_compiled_parts_are_read_like_others(reads: Reads) -> None:
    torch.manual_seed(0)
    model, x = build_model("strided_cnn", 4, (1, 16, 16)).eval(), torch.rand(3, 1, 16, 16)
    expected = observe(model, x, reads)
    inside, itself = copy.deepcopy(model), copy.deepcopy(model)
    inside.body = torch.compile(inside.body, backend="eager")
    itself.compile(backend="eager")
    for compiled in (inside, itself):
        compiled(x)
        assert torch.equal(observe(compiled, x, reads)[1], expected[1])


def refused(model: nn.Module, reads: Reads, message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        observe(model, torch.rand(2, 3, 16, 16), reads)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read() -> None:
    squeezed = convolutions(nn.Conv2d(6, 4, 2), nn.Flatten())
    refused(squeezed, "features", "Sequential runs no linear layer .*name a suitable layer by .*`layer`")
    refused(squeezed, "layers", "Sequential runs no linear layer .*use a detector with the option `layer`")
    assert torch.equal(observe(squeezed, torch.ones(2, 3, 16, 16), Layer("4"))[1].isfinite(), torch.ones(2, 6) == 1)
    net, _ = made("resnet")
    refused(net, Layer("layr4"), r"ResNet has no layer 'layr4'; it has layer4, layer")
    refused(net, Layer("module.layer4"), r"'module.layer4'; it has .*layer4")
    refused(net, Layer("nose"), r"'nose'; it has conv1, bn1, relu")
    refused(net, Layer(""), r"has no layer ''; it has conv1")
    net.unused = nn.ReLU()
    refused(net, Layer("unused"), "ResNet runs no layer 'unused' that returns a float tensor")
    attention, _ = made("vit")
    refused(attention, Layer("encoder.layers.encoder_layer_0.self_attention"), "runs no layer .* that returns a float")
    refused(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(0)), "logits", r"returns \[8\] for images \[2, 3, 16, 16\]")
    refused(nn.Identity(), "features", r"returns \[2, 3, 16, 16\] for images")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("whole", [True, False])
def test_what_torch_jit_made_hides_its_layers(whole: bool) -> None:
    net, x = made("sequential")
    scripted = torch.jit.script(net)
    model = scripted if whole else nn.Sequential(Normalise(), scripted)
    path = "4" if whole else "1.4"
    for reads in ("features", "layers", Layer(path)):
        refused(model, reads, "give the module from which torch.jit made it, or use a detector that reads logits")
    assert torch.equal(observe(model, x, "logits")[1], model(x))


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("gaussian", {"covariance": "tied"}, 512),
        ("gaussian", {"covariance": "tied", "layer": "1.layer3"}, 256),
        ("mahalanobis", {}, 1024),
    ],
)
def test_attacked_with_its_detector(name: str, options: dict, width: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Normalise(), resnet(num_classes=2)).eval()
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        net[1].fc.bias.sub_(net(images / 255).median(0).values)
        x, y = images[:8] / 255, net(images / 255).argmax(1)
    detector = build_detector(name, **options)
    natural = ImageSet(images, y)
    calibration = fit_calibrated(net, detector, natural, natural, 0.1)
    assert int(detector.width) == width
    undetected = Undetected(detector, calibration.threshold, calibration.scale)
    both = Both(Misclassified(), undetected, "selective")
    blind, aware = (
        answers(net, detector, apgd(net, x, y[:8], Linf(0.03), *criterion, steps=10), y[:8])
        for criterion in ((), (both,))
    )
    assert blind.wrong.all()
    assert aware.wrong.all()
    assert aware.scores.mean() < blind.scores.mean()
