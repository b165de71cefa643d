"""A model's logits [n,k], checked; messages say how to fix a model that returns anything else."""

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError

WRITES = (
    "the model modifies its input in place, which would corrupt an attack's images; "
    "make it work on a copy, such as x = x - mean instead of x.sub_(mean)"
)


def logits_of(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """The model's logits [n,k] in at least float32; TrlError if there are fewer than `classes`."""
    logits = answer(model, x)
    if logits.shape[1] < classes:
        raise TrlError(
            f"the model returns {logits.shape[1]} logits, but labels go up to {classes - 1}; it needs one per class"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits [n,k] for images x [n,…], k ≥ 2; TrlError if it returns anything else or modifies x."""
    version = None if x.is_inference() else x._version
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        given = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TrlError(
            f"the model returns {given} for images {list(x.shape)}; "
            f"wrap it in a module that returns logits [{len(x)}, classes]"
        )
    if logits.shape[1] == 1:
        raise TrlError("the model returns a single logit z; for two classes, return torch.cat([-z, z], 1)")
    if version is not None and x._version != version:
        raise TrlError(WRITES)
    return logits


def checked_logits(model: nn.Module, x: Tensor, what: str = "natural images") -> Tensor:
    """The model's logits [n,k] for images x, called `what` in messages; TrlError if they are invalid or NaN."""
    logits = answer(model, x)
    if logits.isnan().any():
        raise TrlError(f"the model's logits are NaN on {what}: check its weights and its normalisation")
    return logits
