"""The faster network of `frozen` is the same network."""

import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from trl.attacks import fast, inner, pgd
from trl.attacks.criterion import MISCLASSIFIED
from trl.attacks.inner import Ascent, ascent, frozen, judge
from trl.attacks.losses import cross_entropy
from trl.models import build_model
from trl.threat import Linf


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(channels: int, *middle: nn.Module, features: int = 8 * 6 * 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), *middle, nn.Linear(features, 4))


def flattened(view: Callable[[Tensor], Tensor], features: int = 8 * 6 * 6) -> nn.Sequential:
    return network(1, nn.ReLU(), Lambda(view), features=features)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network(3, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class Residual(nn.Module):
    """Functions instead of modules, an output used twice, and batch norm without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(input=x, weight=self.first.weight, bias=self.first.bias, padding=1)
        h = h + F.batch_norm(self.second(h), self.norm.running_mean, self.norm.running_var, training=False)
        return self.head(torch.relu_(h).view(len(x), -1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mnist_cnn": (lambda: build_model("mnist_cnn", 4, (1, 8, 8)), (1, 8, 8)),
    "strided_cnn": (lambda: build_model("strided_cnn", 4, (1, 8, 8)), (1, 8, 8)),
    "resnet18": (lambda: build_model("resnet18", 4, (3, 8, 8), mean=(0.5,) * 3, std=(0.3,) * 3), (3, 8, 8)),
    "wide": (lambda: network(5, nn.BatchNorm2d(8), nn.MaxPool2d(1), nn.ReLU(inplace=True), nn.Flatten()), (5, 6, 6)),
    "stride": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, (3, 2), (2, 1), (1, 0)), nn.Flatten(), nn.Linear(8 * 3 * 5, 4)),
        (2, 6, 6),
    ),
    "reflect": (lambda: network(1, nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Flatten()), (1, 6, 6)),
    "dilation": (lambda: network(1, nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Flatten()), (1, 6, 6)),
    "dilation of a few channels": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=2, dilation=2), nn.Flatten(), nn.Linear(288, 4)),
        (3, 6, 6),
    ),
    "depthwise": (lambda: network(3, nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Flatten()), (3, 6, 6)),
    "transposed": (lambda: network(1, nn.ConvTranspose2d(8, 8, 3, padding=1), nn.Flatten()), (1, 6, 6)),
    "residual": (Residual, (2, 6, 6)),
    "weight norm": (lambda: network(1, parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), nn.Flatten()), (1, 6, 6)),
    "instance norm": (lambda: network(1, nn.InstanceNorm2d(8, track_running_stats=True), nn.Flatten()), (1, 6, 6)),
    "batch statistics": (lambda: network(1, nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten()), (1, 6, 6)),
    "1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 4)), (2, 6)),
    "view": (lambda: flattened(lambda h: h.view(len(h), -1)), (1, 6, 6)),
    "view_as": (lambda: flattened(lambda h: h.view_as(h.new_empty(len(h), 288))), (1, 6, 6)),
    "reshape": (lambda: flattened(lambda h: torch.reshape(h, (len(h), -1))), (1, 6, 6)),
    "as_strided": (lambda: flattened(lambda h: h.as_strided((len(h), 288), (288, 1))), (1, 6, 6)),
    "view of a part": (lambda: flattened(lambda h: h.chunk(2, 1)[0].view(len(h), -1), 144), (1, 6, 6)),
    "view of a sum": (lambda: flattened(lambda h: h.sum(3).view(len(h), -1), 48), (1, 6, 6)),
    "shuffle": (
        lambda: flattened(lambda h: h.view(len(h), 2, 4, 6, 6).transpose(1, 2).reshape(h.shape).flatten(1)),
        (1, 6, 6),
    ),
    "checkpoint": (Checkpointed, (3, 6, 6)),
}


def prepared(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, x, y = build().to(dtype), torch.rand(6, *shape, dtype=dtype), torch.randint(4, (6,))
    model(torch.rand(50, *shape, dtype=dtype))  # statistics to normalise by
    return model.eval(), x, y


def plainly(model: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> Ascent:
    with monkeypatch.context() as patch, frozen(model):
        patch.setattr(inner, "fast", lambda x: nullcontext())
        return ascent(model, x, y, cross_entropy, 4)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in NETWORKS), *((name, torch.float64) for name in ("strided_cnn", "residual"))],
)
def test_same_outputs_and_gradients(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = prepared(name, dtype)
    expected = plainly(model, x, y, monkeypatch)
    with frozen(model):
        results = [ascent(model, x, y, cross_entropy, 4) for _ in range(2)]
    for result in results:
        for given, wanted in zip(result, expected, strict=True):
            assert given.shape == wanted.shape
            assert given.dtype == wanted.dtype
            assert distance(given, wanted) < 1e-5


@pytest.mark.parametrize("name", ["mnist_cnn", "residual", "depthwise", "view", "checkpoint"])
def test_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = prepared(name)
    exact = plainly(model, x, y, monkeypatch).gradient
    with torch.autocast("cpu", torch.bfloat16):
        expected = plainly(model, x, y, monkeypatch).gradient
        with frozen(model):
            given = ascent(model, x, y, cross_entropy, 4).gradient
    assert given.dtype == torch.float32
    assert distance(given, exact) < 1.5 * distance(expected, exact) + 0.01


class Seen:
    """The layout of a convolution's outputs and the kind of gradient they have."""

    def __init__(self, module: nn.Module) -> None:
        self.last: list[bool] = []
        self.gradients: list[str] = []
        module.register_forward_hook(self.note)

    def note(self, _: nn.Module, __: object, output: Tensor) -> None:
        self.last.append(not output.is_contiguous())
        self.gradients.append(type(output.grad_fn).__name__)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_only_the_search_is_faster(channels: int) -> None:
    model, x, y = network(channels, nn.Flatten()).eval(), torch.rand(6, channels, 6, 6), torch.randint(4, (6,))
    seen = Seen(model[0])
    model(x)
    with frozen(model):
        ascent(model, x, y, cross_entropy, 4)
        judge(model, x, y, MISCLASSIFIED, cross_entropy, 4)
        model(x)
    model(x)
    assert seen.last == [False, True, False, False, False]
    quick = "_FewChannelsBackward" if channels < 4 else "ConvolutionBackward0"
    assert seen.gradients[1] == quick


def test_a_failing_network_leaves_nothing_behind() -> None:
    def fail(h: Tensor) -> Tensor:
        raise KeyError("broken")

    model = flattened(fail)
    seen = Seen(model[0])
    for _ in range(2):
        with pytest.raises(KeyError, match="broken"):
            pgd(model, torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), Linf(0.1), steps=1)
        with pytest.raises(KeyError, match="broken"):
            model(torch.rand(2, 1, 6, 6))
    assert seen.last == [True, False, True, False]


def test_other_threads_see_nothing() -> None:
    model = network(1, nn.Flatten()).eval()
    seen, x = Seen(model[0]), torch.rand(2, 1, 6, 6)
    with frozen(model), fast.fast(x):
        other = threading.Thread(target=lambda: model(x))
        other.start()
        other.join()
        model(x)
    assert seen.last == [False, True]


class Noisy(nn.Conv2d):
    """A new weight at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + 0.1 * torch.randn_like(self.weight), self.bias, padding=self.padding)


class Moving(nn.Conv2d):
    """Its weight doubles at each call."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.mul_(2)
        return super().forward(x)


def test_weights_that_change_are_not_remembered() -> None:
    x, y = torch.rand(6, 1, 6, 6), torch.randint(4, (6,))
    model = nn.Sequential(Noisy(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(144, 4)).eval()
    with frozen(model):
        first, second = (ascent(model, x, y, cross_entropy, 4).outputs for _ in range(2))
    assert distance(first, second) > 0.01
    model[0] = Moving(1, 4, 3, padding=1, bias=False)
    model[2].bias.data.zero_()
    with frozen(model), fast.fast(x):
        once, twice = model(x), model(x)
    torch.testing.assert_close(twice, 2 * once)


def test_compiled_and_unconvolutional_networks_are_left_alone() -> None:
    x = torch.rand(2, 1, 6, 6)
    compiled = network(1, nn.Flatten())
    compiled[0]._compiled_call_impl = compiled[0].forward  # what compiled[0].compile() sets
    for model in (compiled, nn.Sequential(nn.Flatten(), nn.Linear(36, 4))):
        with frozen(model):
            assert isinstance(fast.fast(x), nullcontext)


def test_weights_made_for_inference() -> None:
    with torch.inference_mode():
        model = network(1, nn.Flatten()).requires_grad_(False).eval()
    with frozen(model), fast.fast(x := torch.rand(2, 1, 6, 6)):
        given = model(x)
    torch.testing.assert_close(given, model(x))


def test_gradient_of_a_few_channels() -> None:
    """Against finite differences, and the gradient of the gradient."""
    torch.manual_seed(0)
    x, weight = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, 3, 2).double()

    def convolved(x: Tensor) -> Tensor:
        return fast._FewChannels.apply(x, weight, None, (2, 1), (1, 0))

    assert torch.autograd.gradcheck(convolved, x)
    assert torch.autograd.gradgradcheck(convolved, x)
