"""A small trained network, and wrappers that hide its gradients without making it any more robust."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trl.data import load_dataset
from trl.threat import Linf

THREAT = Linf(0.1)


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and 300 test images with labels. Nobody may change it."""
    data = load_dataset("digits")
    x, y = data.train.images / 255, data.train.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), data.test.images[:300] / 255, data.test.labels[:300]


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Quantised(Wrapped):
    """Sees 16 grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 15).round() / 15)


class Saturated(Wrapped):
    """The same decisions, more than surely."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 1e4


class Noisy(Wrapped):
    """Sees every value in a wave with a random phase: of height 0.02, but as steep as 3."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.02 * torch.sin(150 * x + 2 * math.pi * torch.rand_like(x)))


def robust(model: nn.Module, x_adv: Tensor, y: Tensor, draws: int = 5) -> float:
    """Accuracy, of a random model the mean over `draws`."""
    with torch.no_grad():
        return float(torch.stack([model(x_adv).argmax(1) == y for _ in range(draws)]).float().mean())
