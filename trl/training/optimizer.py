"""Optimisers with weight decay on weights only."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from trl.config import Optimizer


def build_optimizer(module: nn.Module, config: "Optimizer") -> torch.optim.Optimizer:
    """The optimiser of `config` for the parameters of `module`.

    Weight decay leaves out biases and normalisation, the parameters of one dimension.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused: one pass over memory instead of one for each operation
    options: dict[str, Any] = {"params": [group for group in groups if group["params"]], "lr": config.lr, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(**options, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "adamw":
        return torch.optim.AdamW(**options)
    return torch.optim.Adam(**options)
