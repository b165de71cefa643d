"""Ways to train, one file each: (model, batch) → loss and its named terms."""

from trl.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "natural": "trl.objectives.natural:Natural",
        "at": "trl.objectives.at:AdversarialTraining",
        "alp": "trl.objectives.alp:LogitPairing",
        "tla": "trl.objectives.tla:TripletAdversarial",
    },
)
