"""What holds for every architecture."""

import copy

import pytest
import torch
from torch import nn

from tests.helpers.architectures import COLOUR, NAMES, images, model, shape_of
from trl.common.errors import TrlError
from trl.models import build_model

every = pytest.mark.parametrize("name", NAMES)


@every
def test_logits_are_head_of_features(name: str) -> None:
    net, x = model(name), images(name)
    h = net.features(x)
    assert h.shape == (3, net.head.in_features)
    assert torch.equal(net(x), net.head(h))
    # three images, three embeddings: something is computed from the pixels
    assert (h[0] - h[1]).norm() > 1e-4 * h.norm()
    assert (h[1] - h[2]).norm() > 1e-4 * h.norm()


@every
def test_eval_mode_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    net, x = model(name), images(name)
    before = copy.deepcopy(net.state_dict())
    logits = net(x)
    assert torch.equal(net(x), logits)
    assert torch.allclose(torch.cat([net(x[i : i + 1]) for i in range(3)]), logits, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@every
def test_gradient_reaches_every_image_and_only_its_own(name: str) -> None:
    net, x = model(name), images(name).requires_grad_()
    assert (torch.autograd.grad(net(x).square().sum(), x)[0].flatten(1).abs().amax(1) > 0).all()
    own = torch.autograd.grad(net(x)[0].square().sum(), x)[0]
    assert own[0].abs().max() > 0
    assert own[1:].abs().max() == 0


@every
def test_channels_last_changes_nothing(name: str) -> None:
    net, x = model(name), images(name)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert torch.allclose(other(x.contiguous(memory_format=torch.channels_last)), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 10, 200])
@every
def test_shape_of_the_logits(name: str, classes: int) -> None:
    with torch.device("meta"):  # shapes without arithmetic
        net = build_model(name, classes, shape_of(name))
        assert net(torch.empty(5, *shape_of(name))).shape == (5, classes)


@every
def test_an_empty_batch_has_no_logits(name: str) -> None:
    assert model(name)(images(name)[:0]).shape == (0, 10)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("deep_pursuit", "mlp", "strided_cnn")])
def test_batch_statistics_move_in_train_mode_only(name: str) -> None:
    net, x = copy.deepcopy(model(name)), images(name, 8)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    before = [m.running_mean.clone() for m in norms]
    net(x[:4])
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))
    net.train()(x[:4])
    assert not any(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))


# not preact_resnet50: slow to build, and made of the parts of preact_resnet18
@pytest.mark.parametrize("name", [n for n in NAMES if n != "preact_resnet50"])
def test_the_seed_decides_the_weights(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model(name, 10, shape_of(name)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    filters = [key for key, value in states[0].items() if value.ndim > 1]
    assert not any(torch.equal(states[0][key], states[2][key]) for key in filters)


@every
def test_normalisation_is_inside(name: str) -> None:
    shape = shape_of(name)
    mean, std = (0.4, 0.5, 0.6)[: shape[0]], (0.2, 0.3, 0.4)[: shape[0]]
    plain, x = model(name), images(name)
    net = build_model(name, 10, shape, mean=mean, std=std).eval()
    net.load_state_dict(plain.state_dict())
    normalised = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert torch.allclose(net(x), plain(normalised), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x), plain(x), rtol=1e-4, atol=1e-5)


def test_config_says_how_the_model_was_made() -> None:
    net = build_model("mlp", 7, COLOUR, width=16, mean=[0.5, 0.5, "128/255"], std=(1, 1, 1))
    options = {"width": 16, "depth": 2, "mean": (0.5, 0.5, 128 / 255), "std": (1.0, 1.0, 1.0)}
    assert net.config == {"name": "mlp", "classes": 7, "shape": COLOUR, "options": options}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("vgg", 10), {}, "known: deep_pursuit, mlp, mnist_cnn"),
        (("mlp", 1), {}, "at least 2 classes"),
        (("mlp", 10, (3, 2, 2)), {}, "at least 4×4"),
        (("mlp", 10, (3, 8)), {}, "channels, height, width"),
        (("mlp", 10), {"widht": 3}, "widht: unknown key; allowed: width, depth, mean, std"),
        (("mlp", 10), {"width": 0}, "width: should be greater than or equal to 1, not 0"),
        (("mlp", 10), {"mean": (0.5,), "std": (0.5,)}, "3 channels, not 1 and 1"),
        (("mlp", 10), {"mean": (0.5, 0.5, 0.5)}, "3 channels, not 3 and 0"),
        (("mlp", 10), {"mean": (0, 0, 0), "std": (1, 0, 1)}, "std.1: should be greater than 0"),
        (("wrn_10_1", 10), {"leak": 1}, "leak: should be less than 1"),
        (("wrn_33_10", 10), {}, "depth of 6n \\+ 4"),
        (("wrn_4_10", 10), {}, "depth of 6n \\+ 4"),
        (("wrn_34_0", 10), {}, "such as wrn_34_10"),
        (("wrn_34", 10), {}, "such as wrn_34_10"),
        (("wrn_*", 10), {}, "such as wrn_34_10"),
        (("wrn_10_1_1", 10), {}, "such as wrn_34_10"),
    ],
)
def test_a_wrong_request_is_explained_in_one_line(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        build_model(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "given"),
    [
        (torch.rand(2, 1, 8, 8), "float32 \\[2, 1, 8, 8\\]"),
        (torch.rand(2, 3, 9, 9), "float32 \\[2, 3, 9, 9\\]"),
        (torch.rand(3, 8, 8), "float32 \\[3, 8, 8\\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8 \\[2, 3, 8, 8\\]"),
    ],
)
def test_wrong_images_are_refused(x: torch.Tensor, given: str) -> None:
    with pytest.raises(TrlError, match=f"\\[n, 3, 8, 8\\] in \\[0, 1\\], not {given}"):
        model("wrn_10_1")(x)
    with pytest.raises(TrlError, match=given):
        model("wrn_10_1").features(x)


def test_it_compiles_into_one_graph() -> None:
    net = build_model("wrn_10_1", 10, COLOUR, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    x = images("wrn_10_1")
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))
