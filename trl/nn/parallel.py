"""A batch shared by several processes: each works on its rows, and all of it is what one process would compute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """This process, `rank` of `size`; batches are dealt out in equal consecutive parts."""

    rank: int = 0
    size: int = 1

    def rows(self, values: Tensor) -> Tensor:
        """This process's part of `values` [n·size,…]: [n,…]."""
        n = len(values) // self.size
        return values[self.rank * n : (self.rank + 1) * n]


ALONE = Share()
_current: ContextVar[Share] = ContextVar("share", default=ALONE)


def processes() -> Share:
    """This process among those of torch.distributed's group; alone if there is none."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else ALONE


def current() -> Share:
    """How the batch at hand is shared: not at all outside `sharing`."""
    return _current.get()


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Inside, batches are this process's rows of larger ones; with `ALONE`, every process has all of them."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def draw(like: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """Random values of the shape, type, device and layout of `like` [n,…]; `fill` draws them in place.

    They are drawn for the whole batch, of which each process keeps its rows, so that they do not depend on how many
    processes share it.
    """
    share = current()
    whole = torch.empty((len(like) * share.size, *like.shape[1:]), dtype=like.dtype, device=like.device)
    values = share.rows(fill(whole))
    return values if like.is_contiguous() else torch.empty_like(like).copy_(values)


def gather(values: Tensor) -> Tensor:
    """The rows of all processes, [n,…] → [n·size,…], without a gradient."""
    size = current().size
    if size == 1:
        return values.detach()
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over the processes, without a gradient."""
    size = current().size
    if size == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / size
