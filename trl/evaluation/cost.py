"""The cost of an attack: model passes, time and precision."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


@dataclass
class Cost:
    """Images passed forward and backward through the model, wall time in seconds, and precision of the search.

    The precision is "fp32", "bf16", or "bf16 and fp32" if an attack failed in bf16; "" if there was nothing to attack.
    """

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    precision: str = ""

    def searched_in(self, precision: str) -> None:
        """Record the precision that a batch was attacked in."""
        known = self.precision.split(" and ") if self.precision else []
        self.precision = " and ".join(dict.fromkeys([*known, precision]))


@contextmanager
def counting(model: nn.Module, cost: Cost, beat: Callable[[], None]) -> Iterator[None]:
    """Add the passes and time inside to `cost`; call `beat` at every forward pass, to keep a progress bar moving."""

    def passed(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        cost.forwards += len(inputs[0])
        beat()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(returned)  # type: ignore[no-untyped-call]

    def returned(gradient: Tensor) -> None:
        cost.backwards += len(gradient)

    if isinstance(model, torch.jit.ScriptModule):  # does not support hooks of its own
        handle = register_module_forward_hook(
            lambda module, *given: passed(module, *given) if module is model else None
        )
    else:
        handle = model.register_forward_hook(passed)
    start = time.perf_counter()
    try:
        yield
    finally:
        handle.remove()
        cost.seconds += time.perf_counter() - start
