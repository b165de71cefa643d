"""The same network, run faster on a CPU while an attack searches: up to twice the gradients per second.

PyTorch's choices suit training. An attack wants one gradient only, that of the input, from frozen weights, so that
inside `fast_network` the functions that a network calls are answered by quicker ones, whatever modules call them:
channels-last convolutions, a first convolution whose gradient is a matrix product, batch norm as one multiply-add.
Nothing is written to the network, and values differ by rounding only. Verdicts are the network's own: see `judge`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trl.batch_norm import normalised

FEW_CHANNELS = 3  # oneDNN computes the gradient at so few channels 1.5 to 6 times slower than a product and a fold
NETWORKS = (torch.float32, torch.bfloat16)  # oneDNN has no float64
_LAYOUT_MATTERS = (
    *(torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.reshape_as),
    *(Tensor.view, Tensor.view_as, torch.as_strided, Tensor.as_strided),
)
_current: ContextVar["_Fast | None"] = ContextVar("fast network", default=None)


@contextmanager
def fast_network(model: nn.Module) -> Iterator[None]:
    """Inside, `fast()` may run `model`, whose weights stay as they are meanwhile."""
    convolutional = any(parameter.ndim == 4 for parameter in model.parameters())
    # Dynamo would have to trace through our functions, which gain nothing there
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    worthwhile = convolutional and not compiled and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    token = _current.set(_Fast() if worthwhile else None)
    try:
        yield
    finally:
        _current.reset(token)


def fast(x: Tensor) -> AbstractContextManager[object]:
    """The context in which to call the network on `x`, inside `fast_network`; elsewhere it does nothing."""
    return (x.is_cpu and _current.get()) or nullcontext()


class _Fast(TorchFunctionMode):
    """Answers the torch functions called inside it; a call that it has no better answer to is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[Any, Callable[..., Any]] = {
            torch.conv2d: self.conv2d,
            F.batch_norm: self.batch_norm,
            F.linear: self.linear,
            **{func: partial(self.in_plain_layout, func) for func in _LAYOUT_MATTERS},
        }
        self.prepared: dict[int, tuple[Tensor, tuple[Any, ...], Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in the place of `func`."""
        kwargs = kwargs or {}
        # inside a checkpoint the plain functions are called again by the backward pass, and must match
        if func not in self.answers or torch._C._autograd._top_saved_tensors_default_hooks(False):
            return func(*args, **kwargs)
        return self.answers[func](*args, **kwargs)

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """Channels last, which about halves the time of many convolutions."""
        if not _fits(input, weight, bias) or input.ndim != 4:
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        input = input.contiguous(memory_format=torch.channels_last)
        weight = self.prepare(weight, torch.channels_last)
        simple = groups == 1 and dilation in (1, (1, 1), [1, 1]) and not isinstance(padding, str)
        if simple and weight.shape[1] <= FEW_CHANNELS and input.requires_grad:
            return _FewChannels.apply(input, weight, bias, stride, padding)
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

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
        """One multiply-add: PyTorch's backward pass computes the parameters' gradients, wanted or not."""
        if training or running_mean is None or running_var is None or not _fits(input, weight, bias):
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return normalised(input, running_mean, running_var, weight, bias, eps)

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Autocast converts frozen weights anew for each call; here they are converted once."""
        if torch.is_autocast_enabled("cpu") and _fits(input, weight, bias):
            weight = self.prepare(weight)
        return F.linear(input, weight, bias)

    def in_plain_layout(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A view that the network takes of what it believes to be contiguous; the gradient returns channels-last."""
        if not isinstance(input, Tensor) or input.is_contiguous():
            return func(input, *args, **kwargs)
        if input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last):
            return func(_Plain.apply(input), *args, **kwargs)
        try:
            return func(input, *args, **kwargs)
        except RuntimeError:  # part of a channels-last tensor
            return func(input.contiguous(), *args, **kwargs)

    def prepare(self, weight: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
        """`weight` in the type that autocast wants and in `layout`, remembered if it is a parameter."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        if not isinstance(weight, nn.Parameter) or weight.is_inference():  # a computed weight may change
            return _converted(weight, dtype, layout)
        state = (dtype, layout, weight.data_ptr(), weight._version)
        known = self.prepared.get(id(weight))
        if known is None or known[1] != state:
            known = self.prepared[id(weight)] = (weight, state, _converted(weight, dtype, layout))
        return known[2]


def _converted(weight: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    # not weight.to(…), which leaves a single channel's strides as they are, and with them the layout of what follows
    return torch.empty_like(weight, dtype=dtype, memory_format=layout).copy_(weight.detach())


def _fits(input: Tensor, *parameters: Tensor | None) -> bool:
    given = [parameter for parameter in parameters if parameter is not None]
    return (
        type(input) is Tensor
        and input.is_cpu
        and input.dtype in NETWORKS
        and all(p.is_cpu and p.dtype in NETWORKS and not p.requires_grad for p in given)
    )


class _FewChannels(torch.autograd.Function):
    """conv2d of frozen weights; its gradient at the input is a product, whose columns are folded into the image."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        return torch.conv2d(input, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, stride, padding = inputs
        ctx.save_for_backward(weight)
        ctx.dtype, ctx.size, ctx.options = input.dtype, input.shape[2:], {"stride": stride, "padding": padding}

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        products = weight.to(gradient.dtype).flatten(1).t() @ gradient.flatten(2)  # [n,channels·kernel,positions]
        folded = F.fold(products.to(ctx.dtype), ctx.size, weight.shape[2:], **ctx.options)
        return folded, None, None, None, None


class _Plain(torch.autograd.Function):
    """Contiguous, with a gradient that is channels-last again: PyTorch's kernels are slow where the two meet."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)
