"""Several models attacked at once: on how many images all of them are fooled, by min-max and by averaging."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trl.attacks.domains import FoolsAll, SideBySide
from trl.attacks.minmax import weighted_minmax
from trl.common.images import as_input
from trl.common.progress import Progress, batches
from trl.evaluation.intervals import accuracy
from trl.nn.inference import device_of, full_precision
from trl.nn.modes import evaluating
from trl.results.detect import Figure
from trl.results.ensemble import Difference, Fooled, Together
from trl.threat import Threat


def attack_together(
    models: Mapping[str, nn.Module], x: Tensor, y: Tensor, threat: Threat, batch_size: int = 500, **options: Any
) -> Together:
    """Attack the `models`, two or more on one device, together with `weighted_minmax` and its `options`.

    `x`: uint8, or float in [0, 1], [n,…]; `y`: labels [n]. Shares are of all n images, those that are misclassified
    without attack included. TrlError for a single model and for invalid options.
    """
    together, criterion = SideBySide(list(models.values())), FoolsAll(len(models))
    device = device_of(together)
    # bool [n,models] by kind of image
    fooled = {kind: torch.empty(len(x), len(models), dtype=torch.bool) for kind in ("clean", "minmax", "average")}
    weights = torch.empty(len(x), len(models))
    with evaluating(together), full_precision(device), Progress("ensemble", len(x), "images") as progress:
        for rows in batches(len(x), batch_size):
            images, labels = as_input(x[rows], device), y[rows].to(device)
            found = {"clean": images}
            for strategy in ("minmax", "average"):
                result = weighted_minmax(together, images, labels, threat, criterion, strategy=strategy, **options)
                found[strategy] = result.x_adv
                if strategy == "minmax":
                    weights[rows] = result.weights.cpu()
            with torch.no_grad():
                for kind, x_adv in found.items():
                    fooled[kind][rows] = criterion.fooled(together(x_adv), labels).cpu()
            progress.update(len(labels))
    shares = {kind: _shares(flags, list(models)) for kind, flags in fooled.items()}
    gain = paired(fooled["minmax"].all(1), fooled["average"].all(1))
    return Together(n=len(x), **shares, weights=dict(zip(models, weights.mean(0).tolist(), strict=True)), gain=gain)


def paired(first: Tensor, second: Tensor) -> Difference:
    """Share of `first` less that of `second`, both bool [n] of the same samples, with its 95 % interval.

    The interval is the normal one for paired shares, from the samples in which they differ (McNemar 1947).
    """
    n, more, less = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    value = (more - less) / n
    half = 1.96 * math.sqrt(max(more + less - n * value**2, 0)) / n
    return Difference(value=value, low=value - half, high=value + half)


def _shares(fooled: Tensor, names: list[str]) -> Fooled:
    return Fooled(all=_share(fooled.all(1)), each={name: _share(fooled[:, i]) for i, name in enumerate(names)})


def _share(flags: Tensor) -> Figure:
    found = accuracy(flags)
    return Figure(value=found["accuracy"], low=found["low"], high=found["high"])
