"""A batch shared by several processes: which rows are this one's, and what they tell one another."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process, `rank` of the `size` that share each batch; alone by default, and then nothing is exchanged."""

    rank: int = 0
    size: int = 1

    def rows(self, values: Tensor) -> Tensor:
        """This process's part of `values` [m,…]: [n,…], as large as every other's.

        The parts are consecutive; where they cannot be equal, the first values follow the last ones.
        """
        n = -(-len(values) // self.size)
        return values[torch.arange(self.rank * n, (self.rank + 1) * n, device=values.device) % len(values)]

    def gather(self, values: Tensor) -> Tensor:
        """The rows of all processes, [n,…] → [n·size,…], without a gradient."""
        if self.size == 1:
            return values.detach()
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, values.detach().contiguous())
        return torch.cat(parts)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over the processes, of the same shape, without a gradient."""
        if self.size == 1:
            return values.detach()
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.size


def processes() -> Processes:
    """This process among those of torch.distributed's group; alone if there is none."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()
