"""Norms per sample of a batch [n,…]."""

import torch
from torch import Tensor


def dims_of(batch: Tensor) -> tuple[int, ...]:
    """All dimensions except the first."""
    return tuple(range(1, batch.ndim))


def column(values: Tensor, batch: Tensor) -> Tensor:
    """Values per sample, [n], shaped to broadcast along `batch`: [n,1,…]."""
    return values.reshape(-1, *(1 for _ in dims_of(batch)))


def length(batch: Tensor, norm: str) -> Tensor:
    """The norm (`linf`, `l2`, `l1`) of each sample, shaped to broadcast: [n,1,…]."""
    dims = dims_of(batch)
    if norm == "l2":
        # not linalg.vector_norm: its naive summation on the CPU is off by 1e-4 for 150,000 equal values
        return batch.square().sum(dims, keepdim=True).sqrt_()
    size = batch.abs()
    return size.amax(dims, keepdim=True) if norm == "linf" else size.sum(dims, keepdim=True)


def empty_rows(x: Tensor) -> Tensor:
    """Like `x`, to be filled with random values, in rows: so an image gets the same ones whatever the layout of `x`."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
