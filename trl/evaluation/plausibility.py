"""Signs of a mistake in the settings: units, images, labels, or the model's mode."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trl.attacks.base import Attack
from trl.attacks.ensemble import parts_of
from trl.attacks.mim import mim
from trl.attacks.pgd import bim, cw, pgd
from trl.common.images import as_input
from trl.evaluation.masking import subsample_rows
from trl.evaluation.signs import Sign
from trl.nn.modes import kept_in_training
from trl.threat import Threat

STEPPING = (pgd, bim, cw, mim)  # attacks whose step_size is a length in the threat's norm
FEW = 20  # with fewer images, chance accuracy varies too much
ABOVE = 0.05  # accuracy further above chance is no guessing, however few the images
DARK = 1.5 / 255  # largest value of images that were divided by 255 twice, or that are 0 and 1 as uint8


def check_setting(model: nn.Module, x: Tensor, attacks: Mapping[str, Attack], threat: Threat) -> list[Sign]:
    """Signs before anything runs: in the modes, epsilon, step sizes, and the pixels of at most 128 images.

    `x` uint8 or float in [0, 1], [n,…]. The model must still be in the modes in which it was given.
    """
    signs = [_modes(kept_in_training(model)), _epsilon(threat, x), _region(threat, x), _steps(attacks), _dark(x)]
    return [sign for sign in signs if sign]


def check_accuracy(correct: Tensor, classes: int) -> list[Sign]:
    """A sign if the clean accuracy of `correct`, bool [n], is no better than chance; none for fewer than 20 images."""
    n, accuracy, chance = len(correct), float(correct.double().mean()), 1 / classes
    margin = min(ABOVE, 2 * math.sqrt(chance * (1 - chance) / n))  # at most two standard deviations
    if n < FEW or accuracy > chance + margin:
        return []
    return [
        Sign(
            "chance",
            f"the model classifies {accuracy:.1%} of {n} images correctly, no better than guessing among {classes} "
            f"classes ({chance:.1%} on average), so its robust accuracy means nothing. Check that its weights were "
            "loaded, that labels are numbered as in training, and that it takes images in [0, 1] and normalises them "
            "itself.",
        )
    ]


def _modes(kept: list[str]) -> Sign | None:
    if not kept:
        return None
    names = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
    return Sign(
        "modes",
        f"modules were in training mode inside a model in eval mode: {names}. They are evaluated in eval mode, so the "
        "figures do not describe the model as given; if training mode is intended, put it into forward, for example "
        "F.dropout(x, p, training=True).",
    )


def _epsilon(threat: Threat, x: Tensor) -> Sign | None:
    image = torch.zeros(1, *x.shape[1:])
    everything = float(threat.distance(torch.ones_like(image), image))
    if threat.epsilon < everything or threat.region is not None:
        return None
    return Sign(
        "epsilon",
        f"{threat.name} epsilon {threat.epsilon:g} allows an attack to turn any image into any other, so robust "
        f"accuracy means nothing. Give epsilon for images in [0, 1], such as {threat.epsilon:g}/255.",
    )


def _region(threat: Threat, x: Tensor) -> Sign | None:
    if threat.region is None:
        return None
    mask = threat.around(as_input(x[subsample_rows(x)], x.device)).mask
    empty = 0.0 if mask is None else 1 - float(mask.flatten(1).any(1).float().mean())
    if empty == 0:
        return None
    return Sign(
        "region",
        f"the region of {empty:.0%} of the images is empty: no attack can change them, so they count as robust if they "
        "are classified correctly. Check the region's options.",
    )


def _steps(attacks: Mapping[str, Attack]) -> Sign | None:
    found = []
    for name, attack in (item for given in attacks.items() for item in parts_of(*given).items()):
        options: dict[str, Any] = attack.keywords if isinstance(attack, partial) and attack.func in STEPPING else {}
        step, ball = options.get("step_size"), options.get("threat")
        if step and isinstance(ball, Threat) and 0 < 2 * ball.epsilon < step:
            found.append(f"{name} takes steps of {step:g} at epsilon {ball.epsilon:g}")
    if not found:
        return None
    return Sign(
        "step size",
        f"{', '.join(found)}: a step larger than 2·epsilon crosses the whole ball, so the attack only visits its "
        "boundary and is weak. Give step_size for images in [0, 1], at most 2·epsilon; 2.5·epsilon/steps is usual.",
    )


def _dark(x: Tensor) -> Sign | None:
    highest = float(x.detach()[subsample_rows(x)].max()) / (1 if x.is_floating_point() else 255)
    if highest > DARK:
        return None
    return Sign(
        "dark",
        f"no value of an image is above {highest:.4g} (1 is white): the images were probably divided by 255 twice, or "
        "store 0 and 1 as uint8, so any epsilon is too large for them. Give uint8 from 0 to 255, or floats from 0 "
        "to 1.",
    )
