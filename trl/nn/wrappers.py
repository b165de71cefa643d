"""Wrappers that change where or how a module runs, but not what it computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel, however nested.

    Any other module with an attribute `module` is kept: it may change the input first.
    """
    inner: Any = model
    while (compiled := getattr(inner, "_orig_mod", None)) is not None or isinstance(inner, AROUND):
        inner = inner.module if compiled is None else compiled
    return inner  # type: ignore[no-any-return]


def eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Inside, compiled parts of the model run eagerly; compiled code would skip new hooks."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    return stance
