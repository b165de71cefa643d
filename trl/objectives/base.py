"""What an objective is given, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trl.attacks import Attack
from trl.data import TrainingData
from trl.nn.batch_norm import has_batch_norm
from trl.nn.parallel import Processes, processes
from trl.threat import Threat

Terms = dict[str, Tensor]  # scalars: "loss" is minimised, the others are its parts and figures to watch


@dataclass(frozen=True)
class Setting:
    """What one training run gives its objective.

    `embedding` is the width of the model's embeddings, for objectives with weights or a queue of that width.
    `processes` are those that share each batch: if not given, the ones of torch.distributed, or this one alone.
    """

    data: TrainingData
    threat: Threat
    label_smoothing: float = 0.0
    seed: int = 0
    embedding: int | None = None
    processes: Processes = field(default_factory=processes)


@dataclass(frozen=True)
class Batch:
    """One step: clean images [n,c,h,w] in [0, 1], their labels [n] and indices in the data, and the step's attack.

    For objectives that make attacks themselves: `warmup` is the share of their epsilon that training has reached, and
    what they run is `once(attack)`, whose result is kept if the loss of the batch is computed again.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    step: int
    attack: Attack
    warmup: float = 1.0
    once: Callable[[Attack], Attack] = lambda attack: attack


class Objective(nn.Module):
    """A way to train. `selects` names the validation figure by which its best epoch is chosen.

    `attack_options` are options of the training attack that the objective sets itself, such as the loss to ascend.
    `threat` is what the attacks in training and validation may do: the setting's, unless the objective has its own.
    Its parameters are trained beside the model's, and its buffers are what one step leaves to the next: both are part
    of a checkpoint.
    """

    selects = "val_robust"
    attack_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.threat = setting, setting.threat

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """The loss of one batch, as `Terms`."""
        raise NotImplementedError


def at_least_fp32(values: Tensor) -> Tensor:
    """`values` in at least fp32: losses are not summed in the half precision that autocast may leave."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def classification(logits: Tensor, y: Tensor, label_smoothing: float) -> Terms:
    """Cross-entropy (mean) and accuracy of logits [n,k] for labels [n]."""
    ce = cross_entropy(at_least_fp32(logits), y, label_smoothing=label_smoothing)
    return {"loss": ce, "ce": ce, "accuracy": (logits.argmax(1) == y).float().mean()}


def forward_groups(
    model: nn.Module, function: Callable[[Tensor], Tensor], groups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`function` (of `model`) of each group of images: in one pass, unless that would mix their batch statistics.

    With batch norm, clean and adversarial images are normalised apart, as in the released code of TLA.
    """
    if has_batch_norm(model):
        return tuple(function(group) for group in groups)
    return torch.split(function(torch.cat(list(groups))), [len(group) for group in groups])
