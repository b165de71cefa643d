"""Batch norm of a batch that several processes share."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trl.common.errors import TrlError
from trl.nn.parallel import processes


def has_batch_norm(model: nn.Module) -> bool:
    """Whether an image's output depends, in training, on the images beside it."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def share_batch_norm(model: nn.Module) -> None:
    """Give every batch norm of `model`, in place, the statistics of the batch that all processes share in training.

    PyTorch's SyncBatchNorm does this on GPUs only. The layers stay the same objects, with their parameters and hooks.
    TrlError for a batch norm of another kind than PyTorch's own.
    """
    for name, module in model.named_modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SharedBatchNorm
        elif isinstance(module, _BatchNorm) and type(module) is not SharedBatchNorm:
            raise TrlError(
                f"{name or 'the model'} is a {type(module).__name__}, whose statistics several processes cannot share; "
                "use nn.BatchNorm2d, or one process"
            )


class SharedBatchNorm(_BatchNorm):
    """Batch norm of [n,c,…] whose mean and variance, in training, are those of the equal parts of all processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """[n,c,…], like `input`, whose n is the same in all processes."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims, group = [0, *range(2, x.ndim)], processes()
        own = torch.stack(torch.var_mean(x, dims, correction=0))  # [2,channels]
        table = own.new_zeros(group.size, *own.shape)
        table[group.rank] = own  # each process fills its row, and the sum of the tables has all of them
        variances, means = _Sum.apply(table).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                # without momentum, the running statistics are the mean over all batches so far
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                n = group.size * x.numel() // x.shape[1]
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((variance * n / max(1, n - 1)).to(self.running_var.dtype), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shift = self.bias - mean * scale if self.affine else -mean * scale
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])
