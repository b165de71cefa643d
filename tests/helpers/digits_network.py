"""A small network to attack, and images that it has not seen."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def train(width: int, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Trained on half of the digits; `images` of the others, with labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        digits = load_digits()
        x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[:900]), y[:900]).backward()
            optimizer.step()
    return model, x[900 : 900 + images], y[900 : 900 + images]


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """bool [n]"""
    with torch.no_grad():
        right: Tensor = model(x).argmax(1) == y
    return right
