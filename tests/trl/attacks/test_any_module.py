"""Attacks see the model itself: its outputs and its gradient, however its forward is written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from trl.attacks import pgd
from trl.attacks.base import ascent
from trl.attacks.losses import cross_entropy
from trl.common.errors import TrlError
from trl.models import build_model
from trl.nn.modes import frozen
from trl.threat import Linf

CLASSES = 4


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Mapped(nn.Module):
    """One sample at a time, by a functional transform."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = torch.vmap(lambda a: self.inner(a[None])[0])(x)
        return mapped


class Tangent(Mapped):
    """Adds a directional derivative of its own to the logits."""

    def forward(self, x: Tensor) -> Tensor:
        logits, slope = torch.func.jvp(self.inner, (x,), (torch.ones_like(x),))
        return logits + 0.1 * slope


class Checkpointed(Mapped):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class Functional(nn.Module):
    """Functions instead of modules, and an output used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(8, affine=False), nn.Linear(8 * 36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(input=x, weight=self.first.weight, bias=self.first.bias, padding=1)
        h = h + F.batch_norm(self.second(h), self.norm.running_mean, self.norm.running_var, training=False)
        return self.head(torch.relu_(h).view(len(x), -1))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def network(middle: nn.Module | Callable[[Tensor], Tensor], features: int = 8 * 36) -> nn.Sequential:
    middle = middle if isinstance(middle, nn.Module) else Lambda(middle)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), middle, nn.Flatten(), nn.Linear(features, CLASSES))


def clamped_view(h: Tensor) -> Tensor:
    h.view(len(h), -1).clamp_(min=0)
    return h


def written_slice(h: Tensor) -> Tensor:
    h[:, ::2].mul_(0.5)
    h[..., 1:].add_(h[..., :-1].clone())
    return h


def hooked() -> nn.Module:
    net = network(nn.ReLU())
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    net[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))
    return net


def parametrised() -> nn.Module:
    net = network(nn.ReLU())
    parametrize.register_parametrization(net[0], "weight", Halved())
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "in place through a view": lambda: network(clamped_view),
    "in place in a slice": lambda: network(written_slice),
    "in place by a function": lambda: network(lambda h: torch.relu_(h)),
    "strided slice": lambda: network(lambda h: h[:, ::2, ::2].relu(), 4 * 18),
    "channels of a part": lambda: network(lambda h: h.chunk(2, 1)[0].view(len(h), -1), 144),
    "as_strided": lambda: network(lambda h: h.as_strided((len(h), 144), (288, 2)), 144),
    "sum along a side": lambda: network(lambda h: h.sum(3).view(len(h), -1), 48),
    "transposed": lambda: network(lambda h: h.transpose(1, 3).reshape(len(h), -1)),
    "shuffled": lambda: network(lambda h: h.view(len(h), 2, 4, 6, 6).transpose(1, 2).reshape(h.shape)),
    "vmap": lambda: Mapped(network(nn.ReLU())),
    "jvp": lambda: Tangent(network(nn.Softplus())),
    "checkpoint": lambda: Checkpointed(network(nn.ReLU())),
    "functional": Functional,
    "weight norm": lambda: network(parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
    "spectral norm": lambda: network(parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))),
    "parametrised": parametrised,
    "hooks": hooked,
    "batch norm": lambda: network(nn.BatchNorm2d(8)),
    "instance norm": lambda: network(nn.InstanceNorm2d(8, track_running_stats=True)),
    "batch statistics": lambda: network(nn.BatchNorm2d(8, track_running_stats=False)),
    "strided_cnn": lambda: build_model("strided_cnn", CLASSES, (1, 6, 6)),
    "mnist_cnn": lambda: build_model("mnist_cnn", CLASSES, (1, 6, 6)),
    "resnet18": lambda: build_model("resnet18", CLASSES, (1, 6, 6)),
}


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x, y = NETWORKS[name](), torch.rand(6, 1, 6, 6), torch.randint(CLASSES, (6,))
    with torch.no_grad():
        model(torch.rand(50, 1, 6, 6))  # statistics to normalise by
    return model.eval(), x, y


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradient_are_the_models_own(name: str) -> None:
    model, x, y = prepared(name)
    point = x.clone().requires_grad_()
    outputs = model(point)
    (gradient,) = torch.autograd.grad(cross_entropy(outputs, y).sum(), point)
    with frozen(model):
        found = ascent(model, x, y, cross_entropy, CLASSES)
    assert torch.equal(found.outputs, outputs)
    torch.testing.assert_close(found.gradient, gradient)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_answers_and_learns_afterwards_as_before(name: str) -> None:
    model, x, y = prepared(name)
    expected = model(x)
    loss = cross_entropy(expected, y).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    x_adv = pgd(model, x, y, Linf(0.1), steps=3)
    assert not x_adv.requires_grad
    assert torch.equal(model(x), expected)
    again = torch.autograd.grad(cross_entropy(model(x), y).sum(), list(model.parameters()))
    for a, b in zip(again, gradients, strict=True):
        torch.testing.assert_close(a, b)


class Drawn(nn.Module):
    """Weights written anew in every forward, past autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 36, CLASSES)
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data.copy_(torch.randn_like(self.conv.weight))
        logits: Tensor = self.head(self.conv(x).flatten(1))
        self.outputs.append(logits.detach())
        return logits


def test_weights_written_by_data_are_seen() -> None:
    torch.manual_seed(0)
    model = Drawn().eval()
    pgd(model, torch.rand(4, 1, 6, 6), torch.arange(4), Linf(0.1), steps=6, step_size=1e-7, random_start=False)
    seen = torch.stack(model.outputs)
    with torch.no_grad():
        true = torch.stack([model(torch.rand(4, 1, 6, 6)) for _ in range(6)])
    assert len(seen) == 6
    assert seen.std(0).mean() > 0.5 * true.std(0).mean()


def test_compiled_modules() -> None:
    model, x, y = prepared("batch norm")
    compiled = torch.compile(model, backend="eager")
    expected, found = (pgd(net, x, y, Linf(0.1), steps=3, random_start=False) for net in (model, compiled))
    torch.testing.assert_close(found, expected)


def test_a_failing_network_is_left_as_it_was() -> None:
    def fail(h: Tensor) -> Tensor:
        raise KeyError("broken")

    model = network(fail).train()
    with pytest.raises(KeyError, match="broken"):
        pgd(model, torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), Linf(0.1), steps=1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_made_for_inference_are_refused() -> None:
    with torch.inference_mode():
        model = network(nn.ReLU()).requires_grad_(False).eval()
    with pytest.raises(TrlError, match="inference_mode"):
        pgd(model, torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), Linf(0.1), steps=2)
