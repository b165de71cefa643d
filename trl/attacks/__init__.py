"""Attacks: each is a function (model, x, y, threat, …) → x_adv, one file per family."""

from trl.registry import Registry

ATTACKS = Registry(
    "attack",
    {
        "fgsm": "trl.attacks.fgsm:fgsm",
        "bim": "trl.attacks.pgd:bim",
        "pgd": "trl.attacks.pgd:pgd",
        "cw": "trl.attacks.pgd:cw",
        "mim": "trl.attacks.mim:mim",
    },
)
