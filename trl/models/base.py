"""The base of all classifiers of this package: normalise, embed, then one linear layer."""

from typing import Any

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.common.numbers import Positive, Real

Shape = tuple[int, int, int]  # channels, height, width
Mean = tuple[Real, ...]  # option: one value per channel, in [0, 1] units; empty: no normalisation
Std = tuple[Positive, ...]


class Classifier(nn.Module):
    """`head(body(normalised images))`: maps float images [n, c, h, w] in [0, 1] to logits [n, classes].

    `body` maps normalised images to embeddings [n, embedding], the paper's h: the input of the last linear layer.
    `config` holds the arguments of `build_model`, so that `load_model` can rebuild it.
    TrlError unless `mean` and `std` both have one value per channel, or none.
    """

    def __init__(
        self, body: nn.Module, embedding: int, classes: int, shape: Shape, mean: Mean = (), std: Std = ()
    ) -> None:
        super().__init__()
        if (len(mean), len(std)) not in ((0, 0), (shape[0], shape[0])):
            raise TrlError(
                f"mean and std need one value for each of the {shape[0]} channels, not {len(mean)} and {len(std)}"
            )
        self.shape = shape
        self.config: dict[str, Any] = {}
        self.normalise = Normalise(mean, std) if mean else nn.Identity()
        self.body = body
        self.head = nn.Linear(embedding, classes)

    def features(self, x: Tensor) -> Tensor:
        """Embeddings [n, d]. TrlError unless `x` is a float batch of the model's image shape."""
        if x.shape[1:] != self.shape or not x.is_floating_point():
            given = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            c, h, w = self.shape
            raise TrlError(f"the model takes float images [n, {c}, {h}, {w}] in [0, 1], not {given}")
        return self.body(self.normalise(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes]."""
        return self.head(self.features(x))


class Normalise(nn.Module):
    """(x - mean) / std per channel; the constants are stored in the config, not with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Mean, std: Std) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [n, c, h, w] to images of the same shape."""
        return (x - self.mean) / self.std
