"""Batch norm of a batch in several parts: groups that are normalised apart, processes that are normalised together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from trl.parallel import current


def has_batch_norm(model: nn.Module) -> bool:
    """Whether an image's output depends, in training, on the images beside it."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def normalised(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias per channel of `x` [n,c,…], as one multiply-add in its type."""
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


class _Training(TorchFunctionMode):
    """Inside, `function` takes the place of `torch.nn.functional.batch_norm` in training mode."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self.batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """`function`, unless the running statistics are used."""
        function = self.function if training else F.batch_norm
        return function(input, running_mean, running_var, weight, bias, training, momentum, eps)


def apart(sizes: Sequence[int]) -> TorchFunctionMode:
    """A context in which consecutive groups of a batch, of these sizes, have statistics of their own.

    As if they were passed one after the other, in one pass.
    """

    def batch_norm(input: Tensor, *arguments: Any) -> Tensor:
        return torch.cat([F.batch_norm(group, *arguments) for group in torch.split(input, list(sizes))])

    return _Training(batch_norm)


def together() -> TorchFunctionMode:
    """A context in which the statistics are those of the batch that all processes share (`trl.parallel.sharing`).

    PyTorch's SyncBatchNorm does this on GPUs only, and changes the network's modules.
    """
    return _Training(_synchronised)


class _Sum(torch.autograd.Function):
    """The sum over all processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


def _synchronised(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    share, x = current(), input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [0, *range(2, x.ndim)]
    own = torch.stack(torch.var_mean(x, dims, correction=0))  # [2,channels]
    table = own.new_zeros(share.size, *own.shape)
    table[share.rank] = own  # each process fills its row, and the sum of the tables has all of them
    variances, means = _Sum.apply(table).unbind(1)
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            n = share.size * x.numel() // x.shape[1]
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / max(1, n - 1)).to(running_var.dtype), momentum)
    return normalised(x, mean, variance, weight, bias, eps).to(input.dtype)
