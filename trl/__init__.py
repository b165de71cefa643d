"""Metric learning for adversarial robustness (TLA, Mao et al., NeurIPS 2019): the method, in plain PyTorch.

The names that most programs need are here: `trl.pgd(model, x, y, trl.Linf(8 / 255))`. Each is imported when it is first
used, so that `import trl` does not load PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl.attacks import autoattack, pgd
    from trl.detectors import build_detector
    from trl.evaluation import evaluate
    from trl.models import build_model, load_model
    from trl.threat import L1, L2, Linf

__all__ = ["L1", "L2", "Linf", "autoattack", "build_detector", "build_model", "evaluate", "load_model", "pgd"]

_MODULES = {
    "trl.attacks": ("autoattack", "pgd"),
    "trl.detectors": ("build_detector",),
    "trl.evaluation": ("evaluate",),
    "trl.models": ("build_model", "load_model"),
    "trl.threat": ("L1", "L2", "Linf"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'trl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
