"""What the stage train writes: train.json and training.csv."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_serializer, model_validator

from trl.results.base import Document, Measure, Row


class TrainResult(Document):
    """train.json: the selected epoch and what the training took; `weights` is their SHA-256.

    `fingerprint` is the hash of all that the training depended on; `settings`: what was asked for, with all defaults.
    """

    file, stage = "train.json", "train"

    val_clean: Measure
    val_robust: Measure
    best_epoch: int
    epochs: int
    seconds: float
    parameters: int
    device: str
    weights: str
    fingerprint: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)


class Epoch(Row):
    """A row of training.csv. `terms` are the objective's, each of which has a column of its own, after the loss.

    Accuracies on validation images are NaN for an epoch that was not validated.
    """

    file, stage = "training.csv", "train"

    epoch: int
    lr: float
    loss: float
    terms: dict[str, Measure]
    accuracy: float
    seconds: float
    val_clean: Measure
    val_robust: Measure

    @property
    def columns(self) -> dict[str, float]:
        """By the names of the columns, in their order."""
        found: dict[str, Any] = {}
        for name in type(self).model_fields:
            found |= self.terms if name == "terms" else {name: getattr(self, name)}
        return found

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, row: Any) -> Any:
        """From columns to fields."""
        if not isinstance(row, Mapping) or "terms" in row:
            return row
        terms = {name: value for name, value in row.items() if name not in cls.model_fields}
        return {name: value for name, value in row.items() if name in cls.model_fields} | {"terms": terms}

    @model_serializer
    def _spread(self) -> dict[str, Any]:
        return {name: None if value != value else value for name, value in self.columns.items()}  # NaN is not itself
