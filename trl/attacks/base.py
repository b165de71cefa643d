"""What all gradient attacks share: checked input, a model that is left as it was, the gradient at the input."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl.attacks.criterion import Criterion, Orthogonal
from trl.attacks.eot import EoT
from trl.attacks.losses import Loss
from trl.common.errors import TrlError
from trl.nn.modes import evaluating
from trl.threat import TOLERANCE

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) → x_adv
_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusted_values() -> Iterator[None]:
    """Inside, images and labels are known to be in range: to look at them, a GPU's queue would have to run dry."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def check_input(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """A copy of `x` without gradient, `y` as int64, and the least number of classes that the labels need.

    One synchronisation, or none. TrlError unless x is float32 or float64 [n,…] with values in [0, 1] and y integer
    [n] ≥ 0 on the same device.
    """
    check_images_and_labels(x, y)
    if x.dtype not in (torch.float32, torch.float64):
        raise TrlError(
            f"images must be float32 or float64 in [0, 1] (given {_dtype(x)}); divide uint8 images by 255, "
            "and use torch.autocast for half precision"
        )
    if x.ndim < 2:
        raise TrlError(f"images must be [n,…] (given {list(x.shape)}): add the batch dimension with x[None]")
    if y.device != x.device:
        raise TrlError(f"images are on {x.device}, labels on {y.device}; use y.to(x.device)")
    # copies, since autograd refuses tensors made under torch.inference_mode, and a model may write into its input
    x, y = x.detach().clone(), y.long().clone() if y.is_inference() else y.long()
    if len(x) == 0 or _trusted.get():
        return x, y, 0
    extremes = torch.stack([t.to(torch.float64) for t in (*x.aminmax(), *y.aminmax())])
    low, high, first, last = extremes.tolist()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # false for NaN, too
        raise TrlError(f"images must be in [0, 1] (given {low:.7g} to {high:.7g}); {range_hint(low, high)}")
    if first < 0:
        raise TrlError(f"labels must be at least 0 (given {first:.0f})")
    return x, y, int(last) + 1


def check_images_and_labels(x: object, y: object) -> None:
    """TrlError unless both are tensors, and y holds one class number for each image."""
    for what, given in (("images", x), ("labels", y)):
        if not isinstance(given, Tensor):
            raise TrlError(f"{what} are a {type(given).__name__}: give a tensor, such as torch.as_tensor({what}) makes")
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    n = len(x) if x.ndim else 0
    if y.ndim == 2 and len(y) == n:
        column = y.shape[1] == 1
        kind, mend = ("one column", "y.squeeze(1)") if column else ("one-hot, or scores of classes", "y.argmax(1)")
        raise TrlError(f"labels {list(y.shape)} are {kind}: give class numbers [n], such as {mend}")
    if y.ndim != 1 or len(y) != n:
        raise TrlError(
            f"images {list(x.shape)} with labels {list(y.shape)}: give images [n,…] and labels [n], one each"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TrlError(f"labels must be integer class numbers (given {_dtype(y)}); use y.long()")


def range_hint(low: float, high: float) -> str:
    """What to do about images whose values reach from `low` to `high`, and not from 0 to 1."""
    if low >= 0 and 2 < high <= 255:
        return "give images in [0, 1], such as x / 255, and keep normalisation inside the model"
    return "give images in [0, 1], as they are before normalisation, and keep normalisation inside the model"


def check_positive(**options: float | None) -> None:
    """TrlError unless every option that is given is above 0."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise TrlError(f"{name} must be above 0, not {value!r}")


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


def logits_of(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """The model's logits [n,k] in at least float32; TrlError if they are no logits for that many `classes`."""
    logits = answer(model, x)
    if logits.shape[1] < classes:
        raise TrlError(
            f"the model has {logits.shape[1]} logits, but the labels go up to {classes - 1}; it needs one per class"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits [n,k] of images x [n,…], k ≥ 2; TrlError if it returns anything else, or writes into x."""
    version = None if x.is_inference() else x._version
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        given = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TrlError(
            f"the model returns {given} for images {list(x.shape)}; it must return logits [{len(x)}, classes]"
            ": wrap it in a module that does"
        )
    if logits.shape[1] == 1:
        raise TrlError("the model returns a single logit z; for two classes, let it return torch.cat([-z, z], 1)")
    if version is not None and x._version != version:
        raise TrlError(
            "the model writes into its input, in place, so that an attack would lose its images; "
            "let it work on a copy, such as x = x - mean instead of x.sub_(mean)"
        )
    return logits


class Ascent(NamedTuple):
    """One forward and one backward: per sample the loss [n], its gradient at the input [n,…] and the outputs [n,k]."""

    gradient: Tensor
    loss: Tensor
    outputs: Tensor


def ascent(model: nn.Module, x_adv: Tensor, y: Tensor, loss: Loss, classes: int) -> Ascent:
    """The loss at `x_adv` and its gradient, shaped like it; NaN in the gradient, as of infinite logits, becomes 0.

    In the place of the gradient of an `Orthogonal` loss is its direction, which takes two backwards. Of an `EoT`, the
    means over its draws, of which one at a time is in memory.
    """
    if isinstance(model, EoT):
        sums = ascent(model.model, x_adv, y, loss, classes)
        for _ in range(model.samples - 1):
            sums = Ascent(*map(torch.add, sums, ascent(model.model, x_adv, y, loss, classes)))
        return Ascent(*(part / model.samples for part in sums))
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        outputs = logits_of(model, x_adv, classes)
        values = loss(outputs, y)
        total = values.sum()
    if not total.requires_grad:
        warnings.warn("the model's logits have no gradient at its input: gradient attacks do nothing", stacklevel=3)
        return Ascent(torch.zeros_like(x_adv), values, outputs)
    if isinstance(loss, Orthogonal):
        with torch.enable_grad():
            parts = [part(outputs, y).sum() for part in (loss.first, loss.second)]
        first, second = (_gradient(part, x_adv, keep=part is parts[0]) for part in parts)
        gradient = loss.direction(first, second, loss.first_met(outputs, y))
    else:
        gradient = _gradient(total, x_adv)
    return Ascent(gradient, values.detach(), outputs.detach())


def _gradient(total: Tensor, x: Tensor, keep: bool = False) -> Tensor:
    """At x; zero where there is none or it is NaN. The graph is kept if `keep`."""
    (gradient,) = torch.autograd.grad(total, x, retain_graph=keep, materialize_grads=True)
    return gradient.nan_to_num(nan=0.0)


def judge(
    model: nn.Module, x_adv: Tensor, y: Tensor, criterion: Criterion, loss: Loss, classes: int
) -> tuple[Tensor, Tensor]:
    """Per sample, is it a success (bool [n]), and its loss [n]; in full precision, also under autocast."""
    with torch.autocast(x_adv.device.type, enabled=False):
        outputs = logits_of(model, x_adv, classes)
        return criterion.met(outputs, y), loss(outputs, y)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
