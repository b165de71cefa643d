"""What a detector reads from a classifier: its logits, its embedding, or the outputs of one or several layers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trl.common.errors import TrlError
from trl.common.images import as_input
from trl.common.progress import batches
from trl.detectors.base import Layer, Reads
from trl.nn.inference import device_of, full_precision
from trl.nn.logits import answer
from trl.nn.modes import evaluating
from trl.nn.wrappers import eager, unwrapped

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softsign),
)


def observe(model: nn.Module, x: Tensor, reads: Reads) -> tuple[Tensor, Tensor]:
    """The logits [n,k] of any module for images x, and the features [n,d] that `reads` selects; one forward pass.

    "features": the embedding, that is the input of the last linear layer that runs. Layer: the output of the submodule
    with that path, the last time it runs. "layers": the concatenated outputs of the activations and blocks that run
    before the last linear layer (Lee et al. 2018, arXiv 1807.03888, section 2.2), followed by the embedding. A block is
    a module with submodules; the submodules count instead if it is an nn.Sequential, the only block, or contains the
    last linear layer. Of successive maps of equal size only the last counts, and a map that is averaged to the
    embedding does not. Maps [n,c,h,w] and tokens [n,t,d] are averaged over their positions.

    Differentiable. Looks inside wrappers (see `unwrapped`). TrlError: the model returns no logits, or the layer is
    unknown, does not run, or does not return one row per image.
    """
    if reads == "logits":
        logits = answer(model, x)
        return logits, logits
    model = unwrapped(model)
    trace = _Trace(len(x))
    with ExitStack() as stack:
        for hook in _watch(model, reads, trace):
            stack.callback(hook.remove)
        stack.enter_context(eager(model))
        logits = answer(model, x)
    if trace.seen is None:
        raise _nothing_to_read(model, reads)
    return logits, torch.cat([*trace.layers, trace.seen], 1)


def embed(model: nn.Module, x: Tensor, batch_size: int = 500, reads: Reads = "features") -> tuple[Tensor, Tensor]:
    """Embeddings float32 [n,d] and logits float32 [n,k] of images, on the CPU; eval mode, fp32, no gradient.

    Works for any module; `reads` selects other features than the embedding (see `observe`, also for errors).
    `x`: uint8 or float in [0, 1], moved to the model's device in batches. TrlError for missing or invalid images.
    """
    if len(x) == 0:
        raise TrlError("there are no images to embed: give at least one")
    device = device_of(model)
    parts = []
    with evaluating(model), torch.no_grad(), full_precision(device):
        for batch in batches(len(x), batch_size):
            logits, seen = observe(model, as_input(x[batch], device), reads)
            parts.append((seen.float().cpu(), logits.float().cpu()))
    seen, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return seen, logits


class Observed:
    """Labelled images as a model sees them: what is read of them is computed once, and kept for who reads it next.

    `images` [n,…] are as `embed` takes them, `labels` [n] any integers. The model must stay as it is meanwhile.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> None:
        self.model, self.images, self.labels, self.batch_size = model, images, labels, batch_size
        self._read: Callable[[Reads], tuple[Tensor, Tensor]]
        self._read = cache(lambda reads: embed(model, images, batch_size, reads))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, reads: Reads = "features") -> tuple[Tensor, Tensor]:
        """What a detector that `reads` so is given, and the logits; see `embed`."""
        return self._read(reads)

    def first(self, n: int | None) -> "Observed":
        """The first n (None: all), of which nothing is computed that is not kept for all of them."""
        part = Observed(self.model, self.images[:n], self.labels[:n], self.batch_size)
        part._read = lambda reads: (self.read(reads)[0][:n], self.read(reads)[1][:n])
        return part

    def become(self, images: Tensor) -> "Observed":
        """Other `images` in the place of these, such as what an attack makes of them, under the same labels."""
        return Observed(self.model, images, self.labels, self.batch_size)


def _watch(model: nn.Module, reads: Reads, trace: "_Trace") -> Iterator[RemovableHandle]:
    """Hook the trace into what is read; TrlError if the layer is unknown, or from torch.jit, which has no hooks."""
    if isinstance(reads, Layer):
        layer = _named(model, reads.path)
        if isinstance(layer, torch.jit.ScriptModule):
            raise _nothing_to_read(model, reads)
        yield layer.register_forward_hook(trace.keep_output)
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module.register_forward_pre_hook(trace.keep_input, with_kwargs=True)
        if reads == "layers" and _is_layer(module):
            if isinstance(module, torch.jit.ScriptModule):
                raise _nothing_to_read(model, reads)
            yield module.register_forward_pre_hook(trace.enter)
            yield module.register_forward_hook(trace.leave)


def _nothing_to_read(model: nn.Module, reads: Reads) -> TrlError:
    what = f"layer {reads.path!r} that returns" if isinstance(reads, Layer) else "linear layer that takes"
    # a detector that reads all layers has no such option
    single = "use a detector with the option `layer`"
    fix = single if reads == "layers" else "name a suitable layer by the detector's option `layer`"
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        fix = "give the module from which torch.jit made it"
    return TrlError(
        f"{type(model).__name__} runs no {what} a float tensor with one row per image: {fix}, "
        "or use a detector that reads logits"
    )


class _Done(NamedTuple):
    """A layer that has run: the size and the pooled values [n,d] of its output, and its submodules that ran."""

    size: torch.Size
    pooled: Tensor
    parts: "list[_Done]"


class _Trace:
    """Hooks that record a forward pass of n images; they copy at once, since in-place operations may follow.

    `seen`: the requested features, or None. `layers`: the pooled outputs of the layers before them.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.seen: Tensor | None = None
        self.layers: list[Tensor] = []
        self._done: list[_Done] = []  # top-level layers only
        self._starts: list[int] = []  # for each layer now running, the length of _done when it began

    def keep_output(self, _: nn.Module, __: Any, output: Any) -> None:
        self.seen = _pooled(output).clone() if self._has_rows(output) else None

    def keep_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else kwargs["input"]
        if self._has_rows(given):
            self.seen = given.flatten(1, -2).mean(1) if given.ndim > 2 else given
            self.layers = _read(self._done, self.seen)
        else:
            self.seen = None

    def enter(self, _: nn.Module, __: Any) -> None:
        self._starts.append(len(self._done))

    def leave(self, _: nn.Module, __: Any, output: Any) -> None:
        start = self._starts.pop()
        if self._has_rows(output):  # otherwise its submodules stay instead
            self._done[start:] = [_Done(output.shape, _pooled(output), self._done[start:])]

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 1 and len(value) == self.n and value.is_floating_point()


def _read(done: list[_Done], embedding: Tensor) -> list[Tensor]:
    """The pooled outputs [n,…] to read, of the layers that ran before the embedding [n,d]; see `observe`."""
    while len(done) == 1 and done[0].parts:
        done = done[0].parts
    kept: list[_Done] = []
    for layer in done:
        if kept and len(layer.size) > 2 and layer.size == kept[-1].size:
            kept.pop()
        kept.append(layer)
    if kept:
        size, last, _ = kept[-1]
        if last is embedding or (len(size) > 3 and size[1] == embedding.shape[1]):
            kept.pop()  # the embedding itself, or the map that it averages
    return [layer.pooled for layer in kept]


def _pooled(output: Tensor) -> Tensor:
    """Average rows [n,d], tokens [n,t,d] or maps [n,d,…] to [n,d]."""
    if output.ndim == 2:
        return output
    return output.mean(1 if output.ndim == 3 else tuple(range(2, output.ndim)))


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return False
    return isinstance(module, ACTIVATIONS) or any(True for _ in module.children())


def _named(model: nn.Module, path: str) -> nn.Module:
    """The submodule with that path, without the prefix that torch.compile adds."""
    modules = {name.replace("_orig_mod.", ""): m for name, m in model.named_modules(remove_duplicate=False) if name}
    if path not in modules:
        near = get_close_matches(path, modules) or [name for name, _ in model.named_children()][:10]
        raise TrlError(f"{type(model).__name__} has no layer {path!r}; it has {', '.join(near) or 'none'}")
    return modules[path]
