"""Distances between embeddings."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

EPS = 1e-12  # a zero embedding has cosine 0 with everything


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """Cosine similarity of paired rows: [n,d], [n,d] → [n], in [-1, 1]."""
    return (normalize(u, dim=-1, eps=EPS) * normalize(v, dim=-1, eps=EPS)).sum(-1)


def pairwise_cosine(u: Tensor, v: Tensor) -> Tensor:
    """Cosine similarity of every row of `u` with every row of `v`: [n,d], [m,d] → [n,m], in at least fp32.

    Also under autocast, whose half precision cannot tell an untrained network's embeddings apart.
    """
    u, v = (e.to(torch.promote_types(e.dtype, torch.float32)) for e in (u, v))
    with torch.autocast(u.device.type, enabled=False):
        return normalize(u, dim=-1, eps=EPS) @ normalize(v, dim=-1, eps=EPS).T


def angular_distance(u: Tensor, v: Tensor) -> Tensor:
    """The paper's D(u,v) = 1 - |u·v| / (‖u‖‖v‖) of paired rows: [n,d], [n,d] → [n], in [0, 1] (TLA, section 3)."""
    return 1 - cosine(u, v).abs()


def pairwise_angular_distance(u: Tensor, v: Tensor) -> Tensor:
    """The paper's D of every row of `u` with every row of `v`: [n,d], [m,d] → [n,m], in [0, 1]."""
    return 1 - pairwise_cosine(u, v).abs()
