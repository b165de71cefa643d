"""A recipe that takes seconds and learns nothing, to exercise the pipeline itself."""

from typing import Any

TINY: dict[str, Any] = {  # overrides of another recipe
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "train": {
        "epochs": 2,
        "batch_size": 50,
        "optimizer": {"name": "adam", "lr": 0.01},
        "attack": {"name": "pgd", "steps": 2},
        "validation": {"attack": {"name": "pgd", "steps": 2}},
    },
    "attack": {
        "samples": 100,
        "attacks": {"fgsm": {}, "pgd": {"steps": 3}},
        "curve": {"attack": {"name": "fgsm"}, "epsilons": [0, 0.1, 0.2]},
    },
    "detect": {
        "detectors": {"gaussian": {}, "energy": {}},
        "detector": "gaussian",
        "samples": 100,
        "attacks": {"pgd": {"steps": 3}},
        "adaptive": {"samples": 40, "attacks": {"apgd": {"steps": 3}}},
        "curve": {"epsilons": [0, 0.2], "samples": 40},
        "tsne_samples": 80,
    },
}
