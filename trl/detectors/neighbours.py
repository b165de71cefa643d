"""Nearest neighbours among natural embeddings."""

import torch
from torch import Tensor

PAIRS = 2**24  # distances in memory at a time: 128 MB


def nearest(features: Tensor, natural: Tensor, k: int) -> Tensor:
    """Indices [n,k] of the k ≤ N natural embeddings [N,d] nearest to each of `features` [n,d], nearest first.

    They have no gradient: recompute the distances to the chosen ones, which is exact and needs little memory.
    """
    squares = natural.square().sum(1)
    chunks = features.detach().split(max(1, PAIRS // len(natural)))  # type: ignore[no-untyped-call]
    # |t|² - 2 h·t sorts like the distance |h - t|
    found = [torch.addmm(squares, chunk, natural.T, alpha=-2).topk(k, largest=False).indices for chunk in chunks]
    return torch.cat(found)
