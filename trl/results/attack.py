"""What the stage attack writes: attack.json and curve.csv."""

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from trl.registry import refuse
from trl.results.base import Accuracy, Document, Row, Share

WORST = "worst"  # the entry of attack.json that accumulates all attacks, sample by sample


class Passes(BaseModel):
    """Images passed `forwards` and `backwards` through the model by an attack, and the precision of its search."""

    forwards: int
    backwards: int
    precision: str = "fp32"


class FurtherThreat(BaseModel):
    """Accuracy under a threat beside the recipe's: under each attack, and under all of them (`worst`)."""

    norm: str
    epsilon: float
    region: dict[str, Any] | None = None
    robust: dict[str, Accuracy]


class AttackResult(Document):
    """attack.json: accuracy on natural images, under each attack, and under all of them (`worst`).

    `threats`: under further threats, by name; `union`: under all attacks of all threats, if there are further ones.

    `stages`: what is left after each part of an ensemble; `cost`: by attack, or `attack/part`; `warnings`: signs of a
    mistake or of gradient masking. `settings`: the section of params.yaml that ran, with all defaults.
    """

    file, stage = "attack.json", "attack"

    epsilon: float
    clean: Accuracy
    robust: dict[str, Accuracy]
    stages: dict[str, dict[str, Accuracy]] = Field(default_factory=dict)
    cost: dict[str, Passes] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    threats: dict[str, FurtherThreat] = Field(default_factory=dict)
    union: Accuracy | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if WORST not in self.robust:
            raise refuse(f"no entry {WORST!r}", ("robust",))
        return self


class CurvePoint(Row):
    """A row of curve.csv: accuracy under `attack` at one epsilon."""

    file, stage = "curve.csv", "attack"

    attack: str
    epsilon: float
    accuracy: Share
    low: Share
    high: Share
