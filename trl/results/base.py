"""What result files have in common: how they are read, checked and written."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError

from trl.common.errors import TrlError
from trl.common.files import write_csv, write_json
from trl.registry import explain

Share = Annotated[float, Field(ge=0, le=1)]
Measure = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value in (None, "") else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]
"""A number that need not exist (null or an empty field): NaN then."""


class Accuracy(BaseModel):
    """Share of `n` images classified correctly, with its 95 % interval."""

    accuracy: Share
    low: Share
    high: Share
    n: int

    @property
    def value(self) -> float:
        """The accuracy, under the name that every figure with an interval has."""
        return self.accuracy


class Document(BaseModel):
    """A JSON file, called `file` in a model's folder and written by the pipeline's `stage`."""

    file: ClassVar[str]
    stage: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file in `folder`; TrlError names it if it is missing or broken, and the stage that writes it."""
        path = folder / cls.file
        try:
            return cls.model_validate_json(_text(path, cls.stage))
        except ValidationError as error:
            raise broken(path, explain(error, cls), cls.stage) from None

    def content(self) -> dict[str, Any]:
        """Ready for JSON: what was given, and null where a number does not exist."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, folder: Path) -> None:
        """Write the file to `folder`; TrlError if that fails."""
        write_json(folder / self.file, self.content())


class Row(BaseModel):
    """A row of a CSV file, called `file` in a model's folder and written by the pipeline's `stage`."""

    file: ClassVar[str]
    stage: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> list[Self]:
        """Read all rows, at least one, in `folder`; TrlError as `Document.read`."""
        path = folder / cls.file
        # a row cut short gets a word where its numbers should be, so that it is refused like any other broken one
        rows = list(csv.DictReader(_text(path, cls.stage).decode().splitlines(), restval="nothing"))
        if not rows:
            raise broken(path, "no rows", cls.stage)
        try:
            return TypeAdapter(list[cls]).validate_python(rows)  # type: ignore[valid-type]
        except ValidationError as error:
            raise broken(path, explain(error, cls), cls.stage) from None

    @classmethod
    def write(cls, folder: Path, rows: Sequence[Self]) -> None:
        """Write the file to `folder`; TrlError if that fails."""
        write_csv(folder / cls.file, [row.model_dump(mode="json") for row in rows])


def broken(path: Path, why: str, stage: str) -> TrlError:
    """The error of a result file that cannot be used."""
    return TrlError(f"{path}: {why}; run the {stage} stage (`dvc repro`)")


def _text(path: Path, stage: str) -> bytes:
    """The file's content, which is UTF-8."""
    try:
        content = path.read_bytes()
        content.decode()
    except OSError as error:
        raise broken(path, error.strerror or "cannot be read", stage) from None
    except UnicodeDecodeError:
        raise broken(path, "not a text file", stage) from None
    return content
