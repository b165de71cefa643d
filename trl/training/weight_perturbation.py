"""AWP, adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv 2004.05884), for any objective."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trl.attacks import Attack
from trl.common.seeds import derive_seed
from trl.objectives.base import Batch

if TYPE_CHECKING:
    from trl.config import WeightPerturbation


def gamma_at(epoch: float, config: "WeightPerturbation | None") -> float:
    """How far weights are moved at `epoch` (fractional, from 0), relative to their norm; 0 if they are not."""
    return config.gamma if config and epoch >= config.warmup_epochs else 0.0


@contextmanager
def perturbed_weights(model: nn.Module, gamma: float) -> Iterator[None]:
    """Inside, every weight matrix and filter w is w + `gamma`·‖w‖·g/‖g‖, g its gradient: a step that raises the loss.

    Biases and normalisation, the parameters of one dimension, stay. On exit the weights are the same as before, to the
    bit; gradients that were computed inside stay.
    """
    moved = [p for p in model.parameters() if p.ndim > 1 and p.grad is not None]
    before = [p.detach().clone() for p in moved]
    with torch.no_grad():
        for p in moved:
            assert p.grad is not None
            p.add_(p.grad * (gamma * p.norm() / p.grad.norm().clamp_min(torch.finfo(p.dtype).tiny)))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(moved, before, strict=True):
                p.copy_(value)


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """On exit, all buffers of `module`, such as batch norm's running statistics, are as before."""
    before = {name: value.clone() for name, value in module.named_buffers()}
    yield
    for name, value in module.named_buffers():
        value.copy_(before[name])


class Repeatable:
    """A `batch` whose loss can be computed again, for the attacks' same images and with the same random draws."""

    def __init__(self, batch: Batch, seed: int) -> None:
        self._seed = seed
        self._found: list[Tensor] = []  # by call of an attack
        self._calls = 0
        self._batch = replace(batch, attack=self._remembered(batch.attack), once=self._remembered)

    def again(self) -> Batch:
        """The batch, for one computation of its loss; seeds torch's generators."""
        self._calls = 0
        torch.manual_seed(self._seed)
        return self._batch

    def _remembered(self, attack: Attack) -> Attack:
        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if self._calls == len(self._found):
                self._found.append(attack(model, x, y))
            x_adv = self._found[self._calls]
            self._calls += 1
            torch.manual_seed(derive_seed(self._seed, self._calls))  # the attack, which runs only once, has drawn
            return x_adv

        return run
