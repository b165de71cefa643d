"""Natural embeddings to fit detectors to."""

import torch
from torch import Tensor


def embeddings(n: int = 90, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 [n,d] of three correlated classes about points with coordinates of 3 to 5, and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    mixing = torch.randn(3, d, d, generator=generator) / d
    centres = 3 + 2 * torch.rand(3, d, generator=generator)
    noise = torch.randn(n, 1, d, generator=generator)
    return (noise @ mixing[labels]).squeeze(1) + centres[labels], labels
