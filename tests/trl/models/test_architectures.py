"""Each architecture against its source: parameter counts, layer by layer, or published weights."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from tests.helpers.architectures import images, model
from trl.models import build_model

# torchvision documents 25,557,032 parameters for ResNet-50 with 1,000 classes. Ours has no 7×7×3 stem but a 3×3×3 one,
# no norm after the stem, and none on the four shortcuts; the first norm of a block acts on the block's input instead of
# its narrow map and the last on its narrow map instead of its output; one final norm; a head for 200 classes.
_BLOCKS = [(64, 64, 256), *[(256, 64, 256)] * 2, (256, 128, 512), *[(512, 128, 512)] * 3]
_BLOCKS += [(512, 256, 1024), *[(1024, 256, 1024)] * 5, (1024, 512, 2048), *[(2048, 512, 2048)] * 2]
_PREACT_50 = (
    25_557_032
    - (49 - 9) * 3 * 64
    - 2 * 64
    - 2 * (256 + 512 + 1024 + 2048)
    + sum(2 * (inputs + width - width - outputs) for inputs, width, outputs in _BLOCKS)
    + 2 * 2048
    - (2048 + 1) * (1000 - 200)
)


@pytest.mark.parametrize(
    ("name", "classes", "shape", "count"),
    [
        # published by RobustBench and TRADES (46.16 M), by the Wide ResNet paper as 36.5 M, 8.9 M and 2.7 M
        ("wrn_34_10", 10, (3, 32, 32), 46_160_474),
        ("wrn_28_10", 10, (3, 32, 32), 36_479_194),
        ("wrn_40_4", 10, (3, 32, 32), 8_949_210),
        ("wrn_16_4", 10, (3, 32, 32), 2_748_890),
        # the CIFAR networks of github.com/kuangliu/pytorch-cifar; its pre-activation one lacks the final norm (2 · 512)
        ("resnet18", 10, (3, 32, 32), 11_173_962),
        ("preact_resnet18", 10, (3, 32, 32), 11_171_146 + 2 * 512),
        ("preact_resnet50", 200, (3, 64, 64), _PREACT_50),
        # filters, then norms, then the two dense layers
        (
            "mnist_cnn",
            10,
            (1, 28, 28),
            9 * (32 + 32 * 64 + 64 * 128 + 128 * 256)
            + 2 * (32 + 64 + 128 + 256 + 1024)
            + 12544 * 1024
            + (1024 + 1) * 10,
        ),
        ("strided_cnn", 10, (1, 28, 28), 17 * 16 + 257 * 32 + 1569 * 100 + 101 * 10),
        ("deep_pursuit", 10, (1, 8, 8), 10 * 16 + 145 * 32 + 289 * 32 + 513 * 10),
        ("mlp", 10, (1, 8, 8), 65 * 256 + 257 * 256 + 257 * 10),
    ],
)
def test_parameter_count(name: str, classes: int, shape: tuple[int, int, int], count: int) -> None:
    with torch.device("meta"):
        net = build_model(name, classes, shape)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("wrn_10_1", (3, 32, 32), 8),
        ("preact_resnet18", (3, 32, 32), 4),
        ("preact_resnet50", (3, 64, 64), 4),
        ("resnet18", (3, 32, 32), 4),
    ],
)
def test_size_of_the_last_maps(name: str, shape: tuple[int, int, int], size: int) -> None:
    with torch.device("meta"):
        net = build_model(name, 10, shape)
        pool = net.body.avgpool if name == "resnet18" else net.body[-2]
        seen: list[Tensor] = []
        pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        net(torch.empty(2, *shape))
    assert seen[0].shape == (2, net.head.in_features, size, size)


def _norm(x: Tensor, weights: dict[str, Tensor], key: str) -> Tensor:
    moments = weights[f"{key}.running_mean"], weights[f"{key}.running_var"]
    return F.batch_norm(x, *moments, weights[f"{key}.weight"], weights[f"{key}.bias"])


@pytest.mark.parametrize(("name", "blocks", "leak"), [("wrn_10_1", 3, 0.1), ("preact_resnet18", 8, 0.0)])
def test_pre_activation_network_equals_its_formula(name: str, blocks: int, leak: float) -> None:
    """x ← F(a) + x with a = act(norm(x)), or F(a) + conv(a) where shapes change; then act(norm(x)), averaged."""
    weights, x = model(name).state_dict(), images(name)
    h = F.conv2d(x, weights["body.0.weight"], padding=1)
    for i in range(1, blocks + 1):
        block = f"body.{i}"
        a = F.leaky_relu(_norm(h, weights, f"{block}.activate.0"), leak)
        first, second = weights[f"{block}.residual.0.weight"], weights[f"{block}.residual.3.weight"]
        # widths double exactly where maps are halved, except at the entry
        stride = 2 if first.shape[0] == 2 * first.shape[1] else 1
        residual = F.conv2d(a, first, padding=1, stride=stride)
        residual = F.leaky_relu(_norm(residual, weights, f"{block}.residual.1"), leak)
        residual = F.conv2d(residual, second, padding=1)
        changed = first.shape[0] != first.shape[1]
        h = residual + (F.conv2d(a, weights[f"{block}.shortcut.weight"], stride=stride) if changed else h)
    h = F.leaky_relu(_norm(h, weights, f"body.{blocks + 1}"), leak).mean((2, 3))
    assert torch.allclose(model(name).features(x), h, rtol=1e-3, atol=1e-4)


def test_leak_is_the_slope_below_zero() -> None:
    x = images("wrn_10_1")
    nets = []
    for leak in (0.1, 0.3):
        torch.manual_seed(0)
        nets.append(build_model("wrn_10_1", 10, (3, 8, 8), leak=leak).eval())
    nets[1].load_state_dict(nets[0].state_dict())
    assert not torch.allclose(nets[0](x), nets[1](x), rtol=1e-2)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wrn_10_1"])
def test_convolutions_start_with_he_initialisation(name: str) -> None:
    torch.manual_seed(0)
    filters = [p for p in build_model(name, 10, (3, 8, 8)).parameters() if p.ndim == 4 and p.numel() > 5000]
    assert filters
    for weight in filters:
        he = (2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])) ** 0.5
        assert 0.95 < weight.std() / he < 1.05


def test_mlp_has_depth_hidden_layers_of_width() -> None:
    net = build_model("mlp", 3, (2, 4, 4), width=5, depth=3)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim == 2]
    assert shapes == [(5, 32), (5, 5), (5, 5), (3, 5)]
    assert (net.features(torch.rand(7, 2, 4, 4)) >= 0).all()


@pytest.mark.parametrize(("weights", "accuracy"), [("fgsm", 0.9850), ("pgd_madry", 0.9899)])
@pytest.mark.skipif("TRL_RAW_DATA" not in os.environ, reason="needs the published weights in TRL_RAW_DATA")
def test_published_weights_give_the_published_accuracy(weights: str, accuracy: float) -> None:
    raw = Path(os.environ["TRL_RAW_DATA"])
    folder = raw / "models" / "fast_adversarial_mnist"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    from trl.data import load_dataset

    published = torch.load(folder / f"{weights}.pth", weights_only=True, map_location="cpu")
    net = build_model("strided_cnn", 10, (1, 28, 28)).eval()
    prefix = {"0": "body.0", "2": "body.2", "5": "body.5", "7": "head"}
    net.load_state_dict({f"{prefix[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in published.items()})
    test = load_dataset("mnist", raw).test
    with torch.no_grad():
        predicted = torch.cat([net(x / 255).argmax(1) for x in test.images.split(1000)])
    assert len(test) == 10_000
    assert (predicted == test.labels).sum().item() == round(10_000 * accuracy)


def test_resnet18_is_torchvisions_but_for_its_stem() -> None:
    net, x = model("resnet18"), images("resnet18")
    weights = {k.removeprefix("body."): v for k, v in net.state_dict().items() if k.startswith("body.")}
    reference = torchvision.models.resnet18()
    stem = weights.pop("conv1.weight")
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert (set(missing), unexpected) == ({"conv1.weight", "fc.weight", "fc.bias"}, [])
    reference.eval()
    h = F.relu(reference.bn1(F.conv2d(x, stem, padding=1)))
    for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
        h = layer(h)
    assert torch.allclose(net.features(x), h.mean((2, 3)), rtol=1e-4, atol=1e-5)
