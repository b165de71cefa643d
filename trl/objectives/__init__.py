"""Ways to train, one file each: (model, batch) → loss and its named terms."""

from trl.objectives.build import build_objective
from trl.objectives.mix import build_mixed
from trl.objectives.registry import OBJECTIVES

__all__ = ["OBJECTIVES", "build_mixed", "build_objective"]
