"""What a detector reads from a classifier: its logits, its embedding, or what several of its layers give."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from trl.detectors.base import Reads
from trl.errors import TrlError


def observe(model: nn.Module, x: Tensor, reads: Reads) -> tuple[Tensor, Tensor]:
    """The model's logits [n,k] of images x, and what a detector that `reads` so is given, [n,d]; one forward.

    features: the input of `model.head`. layers: the outputs of the activations, blocks and groups of `model.body`, each
    averaged over its positions, one after the other (Lee et al. 2018, arXiv 1807.03888, section 2.2), with the
    embedding as the last. Of successive maps of one size, only the last counts; what the embedding repeats does not.
    Differentiable. TrlError for a model without `head` and `body`, unless logits are read.
    """
    if reads == "logits":
        logits: Tensor = model(x)
        return logits, logits
    head, body = getattr(model, "head", None), getattr(model, "body", None)
    if not isinstance(head, nn.Module) or not isinstance(body, nn.Module):
        raise TrlError(
            f"{type(model).__name__} has no body and head to read {reads} from: take a model made by build_model, "
            "or a detector that reads logits"
        )
    seen: list[Tensor] = []
    shapes: list[torch.Size] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.ndim > 2 and shapes[-1:] == [output.shape]:
            seen.pop()
        shapes.append(output.shape)
        seen.append(output.mean(tuple(range(2, output.ndim))) if output.ndim > 2 else output)

    def keep_embedding(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        embedding = inputs[0]
        if seen and (seen[-1] is embedding or (len(shapes[-1]) > 2 and shapes[-1][1] == embedding.shape[1])):
            seen.pop()  # the embedding itself, or the map that it is the average of
        seen.append(embedding)

    layers = [m for m in body.children() if _is_layer(m)] if reads == "layers" else []
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        hooks.callback(head.register_forward_pre_hook(keep_embedding).remove)
        logits = model(x)
    return logits, torch.cat(seen, 1)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.LeakyReLU) or any(True for _ in module.children())
