"""The objectives that can be named: a new one is a file and a line here."""

from trl.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "natural": "trl.objectives.natural:Natural",
        "at": "trl.objectives.at:AdversarialTraining",
        "alp": "trl.objectives.alp:LogitPairing",
        "smoothing": "trl.objectives.smoothing:Smoothing",
        "trades": "trl.objectives.trades:Trades",
        "mart": "trl.objectives.mart:Mart",
        "minmax": "trl.objectives.minmax:MinMax",
        "localized": "trl.objectives.localized:Localized",
        "tla": "trl.objectives.tla:TripletAdversarial",
    },
)
