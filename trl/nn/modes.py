"""Put a model into eval mode, optionally with frozen weights, and restore it; uses its own train() and eval()."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from trl.common.errors import TrlError

# PyTorch's modules that behave differently in training mode
MODAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (batch norm uses its running statistics and keeps them); restores the mode of every module."""
    modes = [(module, _trains(module)) for module in model.modules()]
    to_eval(model)
    try:
        yield
    finally:
        if any(_trains(module) != mode for module, mode in modes):
            for module, mode in modes:  # a module before its submodules, which may have another mode
                if module is model or _trains(module) != mode:
                    module.train(mode)
                if _trains(module) != mode:  # its own train() did something else
                    module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside: eval mode, frozen parameters, gradients off. Modes and flags are restored on exit, even after an error.

    Eval mode leaves batch norm's running statistics unchanged (TLA's released code also attacks in this mode).
    TrlError for weights created under torch.inference_mode, which autograd rejects.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise TrlError("the model was created under torch.inference_mode, without gradients; create or load it outside")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def to_eval(model: nn.Module) -> None:
    """Call the model's own eval() unless all of it is in eval mode; modules from torch.export have no modes."""
    if any(map(_trains, model.modules())):
        with suppress(NotImplementedError):
            model.eval()


def kept_in_training(model: nn.Module) -> list[str]:
    """Paths of modules in training mode inside a module in eval mode, where that makes a difference.

    Modules that are not PyTorch's own are assumed to behave differently. Modules that the model's own eval() leaves in
    training mode do not count.
    """
    kept = {
        f"{name}.{child}".lstrip("."): part
        for name, module in model.named_modules()
        if not _trains(module)
        for child, part in module.named_children()
        if _trains(part) and any(map(_is_modal, part.modules()))
    }
    with evaluating(model):
        return [path for path, part in kept.items() if not _trains(part)]


def _trains(module: nn.Module) -> bool:
    return getattr(module, "training", False)  # submodules of a frozen ScriptModule have no mode


def _is_modal(module: nn.Module) -> bool:
    return isinstance(module, MODAL) or not type(module).__module__.startswith("torch.")
