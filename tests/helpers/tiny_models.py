"""Models and attacks small enough to know their results."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Threshold(nn.Module):
    """Class 1 where the only pixel exceeds 0.5, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([torch.zeros_like(x), 4 * x - 2], 1)


class Net(nn.Module):
    """Two layers with batch norm, features and a head, three classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.head = nn.Linear(8, 3)
            self.body[2].running_mean.uniform_(-0.5, 0.5)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Halved(nn.Module):
    """A module of somebody's that holds a `module` and changes its input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x / 2)


def images(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images [n,3,2,2], and labels of which `Net(seed)` gets about four in five right."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, 2, 2), generator=generator, dtype=torch.uint8)
    y = Net(seed).eval()(x / 255).argmax(1)
    wrong = torch.rand(n, generator=generator) < 0.2
    return x, torch.where(wrong, (y + 1) % 3, y)


def shift(amount: float) -> Attack:
    """Every pixel moves by `amount`."""
    return lambda model, x, y: (x + amount).clamp(0, 1)


def gradient_sign(epsilon: float) -> Attack:
    """One step of size epsilon up the cross-entropy: no randomness."""

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), y), x)
        return (x + epsilon * gradient.sign()).clamp(0, 1)

    return attack


def noise(epsilon: float) -> Attack:
    """Uniform noise from torch's global generator."""
    return lambda model, x, y: (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
