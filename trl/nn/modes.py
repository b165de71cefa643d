"""Use a model in evaluation mode for a moment, by its own train() and eval()."""

import contextlib
from collections.abc import Iterator

from torch import nn

# what answers otherwise in training mode, among PyTorch's own modules
MODAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (batch norm uses and keeps its statistics); every module's own mode is restored afterwards."""
    modes = [(module, _trains(module)) for module in model.modules()]
    to_eval(model)
    try:
        yield
    finally:
        if any(_trains(module) != mode for module, mode in modes):
            for module, mode in modes:  # a module before its parts, which may differ from it
                if module is model or _trains(module) != mode:
                    module.train(mode)


def to_eval(model: nn.Module) -> None:
    """Call the model's own eval(), unless all of it is in eval mode. A module of torch.export has no modes."""
    if any(map(_trains, model.modules())):
        with contextlib.suppress(NotImplementedError):
            model.eval()


def kept_in_training(model: nn.Module) -> list[str]:
    """Paths of the modules in training mode inside a module in eval mode, where it makes a difference.

    Of modules that are not PyTorch's own, it is taken to make one.
    """
    return [
        f"{name}.{child}".lstrip(".")
        for name, module in model.named_modules()
        if not _trains(module)
        for child, part in module.named_children()
        if _trains(part) and any(map(_minds, part.modules()))
    ]


def _trains(module: nn.Module) -> bool:
    return getattr(module, "training", False)  # parts of a frozen ScriptModule have no mode


def _minds(module: nn.Module) -> bool:
    return isinstance(module, MODAL) or not type(module).__module__.startswith("torch.")
