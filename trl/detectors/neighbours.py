"""Nearest neighbours among many natural embeddings."""

import torch
from torch import Tensor

PAIRS = 2**24  # distances held at a time: 128 MB


def nearest(features: Tensor, natural: Tensor, k: int) -> Tensor:
    """Indices [n,k] of the k ≤ N nearest of natural embeddings [N,d] to each of features [n,d], the nearest first.

    They have no gradient: take the distances to the chosen ones afresh, which is exact and costs little memory.
    """
    squares = natural.square().sum(1)
    chunks = features.detach().split(max(1, PAIRS // len(natural)))  # type: ignore[no-untyped-call]
    # |t|² - 2 h·t orders like the distance |h - t|
    found = [torch.addmm(squares, chunk, natural.T, alpha=-2).topk(k, largest=False).indices for chunk in chunks]
    return torch.cat(found)
