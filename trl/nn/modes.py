"""Use a model in evaluation mode, perhaps with frozen weights, for a moment: by its own train() and eval()."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from trl.common.errors import TrlError

# what answers otherwise in training mode, among PyTorch's own modules
MODAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)


@contextmanager
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
                if _trains(module) != mode:  # its own train() does something else
                    module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside: eval mode, parameters without gradient, gradients off. Afterwards, whatever happened: flags as before.

    Eval mode keeps batch norm's running statistics as they are (TLA's released code attacks in this mode, too).
    TrlError for weights that were made under torch.inference_mode, which autograd refuses.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise TrlError("the model was made under torch.inference_mode, without gradients; make or load it outside")
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
    """Call the model's own eval(), unless all of it is in eval mode. A module of torch.export has no modes."""
    if any(map(_trains, model.modules())):
        with suppress(NotImplementedError):
            model.eval()


def kept_in_training(model: nn.Module) -> list[str]:
    """Paths of the modules in training mode inside a module in eval mode, where it makes a difference.

    Of modules that are not PyTorch's own, it is taken to make one. Not those that the model's own eval() leaves so.
    """
    kept = {
        f"{name}.{child}".lstrip("."): part
        for name, module in model.named_modules()
        if not _trains(module)
        for child, part in module.named_children()
        if _trains(part) and any(map(_minds, part.modules()))
    }
    with evaluating(model):
        return [path for path, part in kept.items() if not _trains(part)]


def _trains(module: nn.Module) -> bool:
    return getattr(module, "training", False)  # parts of a frozen ScriptModule have no mode


def _minds(module: nn.Module) -> bool:
    return isinstance(module, MODAL) or not type(module).__module__.startswith("torch.")
