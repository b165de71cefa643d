"""The triplet loss and the miners as plain loops over samples, to compare with."""

import torch
from torch import Tensor


def distance(u: Tensor, v: Tensor) -> Tensor:
    norms = u.norm() * v.norm()
    return 1 - (u @ v).abs() / norms if norms > 0 else torch.ones((), dtype=u.dtype)


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, found: list[bool], margin: float) -> Tensor:
    terms = [
        torch.clamp(distance(a, p) - distance(a, n) + margin, min=0)
        for a, p, n, f in zip(anchor, positive, negative, found, strict=True)
        if f
    ]
    return sum(terms) / len(terms) if terms else (anchor + positive + negative).sum() * 0


def hardest_negative(similarity: Tensor, labels: list[int], pool_labels: list[int]) -> list[int | None]:
    chosen: list[int | None] = []
    for i, label in enumerate(labels):
        best = None
        for j, other in enumerate(pool_labels):
            if other != label and (best is None or similarity[i, j] > similarity[i, best]):
                best = j
        chosen.append(best)
    return chosen
