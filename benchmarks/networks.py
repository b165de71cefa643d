"""Robust networks to attack: published ones if available, else one trained in less than a minute."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.turns import say
from trl.attacks import pgd
from trl.data import Dataset, load_dataset
from trl.models import build_model
from trl.threat import Linf

Found = tuple[nn.Module, Dataset]  # a network in eval mode, and its data set


def published(name: str) -> Found | None:
    """A network of Wong, Rice & Kolter 2020 with MNIST, from the folder TRL_RAW_DATA; None if missing."""
    raw = os.environ.get("TRL_RAW_DATA")
    weights = Path(raw or "") / "models/fast_adversarial_mnist" / name
    if not raw or not weights.exists():
        return None
    model = build_model("strided_cnn", 10, (1, 28, 28))
    state = torch.load(weights, map_location="cpu", weights_only=True)  # the same layers under different names
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval(), load_dataset("mnist", Path(raw))


def trained_on_digits(epsilon: float, epochs: int, seed: int) -> Found:
    """Train a network adversarially on scikit-learn's digits for `epochs`."""
    dataset = load_dataset("digits")
    torch.manual_seed(seed)
    model = build_model("strided_cnn", 10, dataset.train.shape)
    _train(model, dataset.train.images.float() / 255, dataset.train.labels, epsilon, epochs)
    return model.eval(), dataset


def first_images(dataset: Dataset, images: int, device: str) -> tuple[Tensor, Tensor]:
    """The first `images` test images as floats, and their labels."""
    test = dataset.test
    return (test.images[:images].float() / 255).to(device), test.labels[:images].to(device)


def _train(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(epochs):
        if epoch % 10 == 0:
            say(f"training a robust network: epoch {epoch} of {epochs}")
        for rows in torch.randperm(len(x)).split(100):
            x_adv = pgd(model, x[rows], y[rows], Linf(epsilon * min(1, 2 * (epoch + 1) / epochs)), steps=5)
            optimizer.zero_grad()
            cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
