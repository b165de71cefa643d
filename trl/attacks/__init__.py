"""Attacks: each is a function (model, x, y, threat, …) → x_adv, one file per family.

`model` is any `torch.nn.Module` from images x, [n,…] with values in [0, 1], to logits [n,k]; y holds integer labels
[n]. x_adv has the device, dtype and memory format of x, lies in [0, 1] and in the threat's ball, and has no gradient.
The model runs in eval mode with frozen parameters; its parameters, gradients, buffers and flags stay as they were.
`criterion` says what counts as success: `Misclassified()`, or `Targeted()`, for which y is the class to reach, or a
composition such as `Misclassified() & Undetected(detector, threshold)`.
Randomness comes from torch's global generator. TrlError for images or labels that do not fit.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from trl.attacks.apgd import apgd, apgd_t
from trl.attacks.autoattack import autoattack, build_autoattack
from trl.attacks.base import Attack
from trl.attacks.criterion import MISCLASSIFIED, Both, Criterion, Misclassified, Targeted, Undetected
from trl.attacks.cw_l2 import cw_l2
from trl.attacks.deepfool import deepfool
from trl.attacks.eot import EoT
from trl.attacks.fab import fab, fab_t
from trl.attacks.fgsm import fgsm
from trl.attacks.mim import mim
from trl.attacks.pgd import bim, cw, pgd  # here and now, so that `pgd` is the function, whoever imports its module
from trl.attacks.square import square
from trl.registry import Registry
from trl.threat import Threat

ATTACKS = Registry(
    "attack",
    {
        "apgd": "trl.attacks.apgd:apgd",
        "apgd_t": "trl.attacks.apgd:apgd_t",
        "autoattack": "trl.attacks.autoattack:autoattack",
        "fgsm": "trl.attacks.fgsm:fgsm",
        "bim": "trl.attacks.pgd:bim",
        "pgd": "trl.attacks.pgd:pgd",
        "cw": "trl.attacks.pgd:cw",
        "cw_l2": "trl.attacks.cw_l2:cw_l2",
        "mim": "trl.attacks.mim:mim",
        "square": "trl.attacks.square:square",
        "fab": "trl.attacks.fab:fab",
        "fab_t": "trl.attacks.fab:fab_t",
        "deepfool": "trl.attacks.deepfool:deepfool",
    },
)


def build_attack(name: str, threat: Threat, criterion: Criterion = MISCLASSIFIED, **options: Any) -> Attack:
    """The attack `name` as a function (model, x, y) → x_adv; TrlError for an unknown name or unfit options."""
    if name == "autoattack":  # in parts, so that an evaluation can stop and go on between them
        return build_autoattack(threat, criterion, **ATTACKS.check(name, options))
    return partial(ATTACKS.get(name), threat=threat, criterion=criterion, **ATTACKS.check(name, options))


def build_attack_at(
    epsilon: float, name: str, threat: Threat, criterion: Criterion = MISCLASSIFIED, **options: Any
) -> Attack:
    """The attack that `build_attack` makes for `threat`, at another epsilon: its step size scales along."""
    if options.get("step_size") and threat.epsilon:
        options["step_size"] = options["step_size"] * epsilon / threat.epsilon or None  # 0 is no step size
    return build_attack(name, replace(threat, epsilon=epsilon), criterion, **options)


__all__ = [
    "ATTACKS",
    "Attack",
    "Both",
    "Criterion",
    "EoT",
    "Misclassified",
    "Targeted",
    "Undetected",
    "apgd",
    "apgd_t",
    "autoattack",
    "bim",
    "build_attack",
    "build_attack_at",
    "cw",
    "cw_l2",
    "deepfool",
    "fab",
    "fab_t",
    "fgsm",
    "mim",
    "pgd",
    "square",
]
