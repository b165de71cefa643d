"""Attacks: each is a function (model, x, y, threat, …) → x_adv, one file per family.

`model` is any `torch.nn.Module` that maps images x, [n,…] with values in [0, 1], to logits [n,k]; y holds integer
labels [n]. x_adv has the device, dtype and memory format of x, lies in [0, 1] and in the threat's ball, and carries no
gradient. The model runs in eval mode with frozen parameters; its parameters, gradients, buffers and flags are restored.
`criterion` defines success: `Misclassified()`, `Targeted()` (y is then the class to reach), or a combination such as
`Misclassified() & Undetected(detector, threshold)`.
Random numbers come from torch's global generator. TrlError for invalid images or labels.
"""

from trl.attacks.apgd import apgd, apgd_t
from trl.attacks.autoattack import autoattack
from trl.attacks.base import Attack
from trl.attacks.build import build_attack, build_attack_at
from trl.attacks.criterion import Both, Criterion, Misclassified, Targeted, Undetected
from trl.attacks.cw_l2 import cw_l2
from trl.attacks.deepfool import deepfool
from trl.attacks.domains import FoolsAll, SideBySide, Transformed
from trl.attacks.eot import EoT
from trl.attacks.fab import fab, fab_t
from trl.attacks.fgsm import fgsm
from trl.attacks.mim import mim
from trl.attacks.minmax import Found, minmax, universal, weighted_minmax
from trl.attacks.pgd import bim, cw, pgd  # not lazily: `trl.attacks.pgd` must be the function, not its module
from trl.attacks.registry import ATTACKS
from trl.attacks.square import square

__all__ = [
    "ATTACKS",
    "Attack",
    "Both",
    "Criterion",
    "EoT",
    "FoolsAll",
    "Found",
    "Misclassified",
    "SideBySide",
    "Targeted",
    "Transformed",
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
    "minmax",
    "pgd",
    "square",
    "universal",
    "weighted_minmax",
]
