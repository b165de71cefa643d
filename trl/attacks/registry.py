"""All attacks by name: to add one, write a file and add a line here."""

from trl.registry import Registry

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
