"""Ways to train, one file each: (model, batch) → loss and its named terms."""

from typing import TYPE_CHECKING, Any

from trl.registry import Registry

if TYPE_CHECKING:
    from trl.objectives.base import Objective, Setting

OBJECTIVES = Registry(
    "objective",
    {
        "natural": "trl.objectives.natural:Natural",
        "at": "trl.objectives.at:AdversarialTraining",
        "alp": "trl.objectives.alp:LogitPairing",
        "tla": "trl.objectives.tla:TripletAdversarial",
    },
)


def build_objective(name: str, setting: "Setting", **options: Any) -> "Objective":
    """The objective `name` for one training run."""
    built: Objective = OBJECTIVES.build(name, setting, **options)
    return built
