"""An objective by its name and options, as params.yaml gives it."""

from typing import Any

from trl.objectives.base import Objective, Setting
from trl.objectives.registry import OBJECTIVES


def build_objective(name: str, setting: Setting, **options: Any) -> Objective:
    """The objective `name` for one training run."""
    built: Objective = OBJECTIVES.build(name, setting, **options)
    return built
