"""What the stage detect writes: detect.json, roc.csv, scores.csv, detection.csv and tsne.csv."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from trl.registry import refuse
from trl.results.base import Accuracy, Document, Measure, Row, Share

ADAPTIVE = "adaptive"  # the worst case over all attacks, also those that know the detector
Subset = Literal["all", "successful", "failed"]


class Representation(BaseModel):
    """Shift of adversarial embeddings to the false class (r) and from the true one (r_prime)."""

    r: Measure
    r_prime: Measure


class Neighbours(BaseModel):
    """Accuracy of a k-nearest-neighbour classifier on the embeddings."""

    natural: Measure
    adversarial: Measure


class Figure(BaseModel):
    """A figure of detection with its 95 % interval."""

    value: Share
    low: Share
    high: Share


class Figures(BaseModel):
    """Natural against adversarial images: areas under the ROC and the precision-recall curve, share of false alarms
    where 95 % are found, and shares found at 1 % and 5 % false alarms.
    """

    auc: Figure
    aupr: Figure
    fpr95: Figure
    tpr01: Figure
    tpr05: Figure


class Subsets(BaseModel):
    """Figures of all adversarials, those that are misclassified and those that are not; null: there are none."""

    all: Figures
    successful: Figures | None
    failed: Figures | None


class Rejection(BaseModel):
    """Accuracy of classifier and detector together, at the calibrated threshold.

    A natural image counts if it is classified correctly and accepted (`clean`), and under attack only if, besides, what
    the attack makes of it is classified correctly or rejected: under each `static` attack, which are those of the stage
    and what the stage attack found, under all of these and the `adaptive` ones up to each, and under all (`worst`).
    """

    clean: Accuracy
    static: dict[str, Accuracy]
    adaptive: dict[str, Accuracy]
    worst: Accuracy


class DetectorFigures(BaseModel):
    """One detector: its threshold, the share of natural test images above it, and how well it detects.

    `static`: by attack that knows nothing of the detector; `adaptive`: the worst per image over those and the attacks
    that know it. `warnings`: signs that the detector is credited with more than it does.
    """

    threshold: float
    false_alarms: Figure
    static: Annotated[dict[str, Subsets], Field(min_length=1)]
    adaptive: Subsets
    rejection: Rejection
    warnings: list[str] = []


class Validation(BaseModel):
    """On validation images: the AUC under an attack that does not know the detector and under those that do, and the
    accuracy of classifier and detector together, clean and in the worst case (`robust`).
    """

    auc: Share
    adaptive_auc: Share
    clean: Share
    robust: Share


class DetectResult(Document):
    """detect.json: every detector's figures, and which of them is the one to deploy (`detector`).

    `false_alarms` is the rate that the thresholds were calibrated for. `validation`: the figures by which a model is
    chosen for deployment, without a look at test images. `settings`: the section of params.yaml that ran, with all
    defaults.
    """

    file, stage = "detect.json", "detect"

    epsilon: float
    false_alarms: Share
    detector: str
    detectors: dict[str, DetectorFigures]
    validation: Validation
    representation: Representation
    knn: Neighbours
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def deployed(self) -> DetectorFigures:
        """The figures of the detector to deploy."""
        return self.detectors[self.detector]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.detector not in self.detectors:
            raise refuse(f"no entry {self.detector!r}", ("detectors",))
        for name, figures in self.detectors.items():
            if not set(figures.rejection.static) >= set(figures.static) == set(self.deployed.static):
                raise refuse("static: not the attacks of the others", ("detectors", name))
        return self


class RocPoint(Row):
    """A row of roc.csv; `attack` is "adaptive" for the worst case over all attacks that know the detector."""

    file, stage = "roc.csv", "detect"

    detector: str
    attack: str
    subset: Subset
    fpr: Share
    tpr: Share


class ScoreBin(Row):
    """A row of scores.csv: how many test images score from `low` to `high`.

    `images` are "natural" ones, those of an attack, or "adaptive": the worst case over all attacks.
    """

    file, stage = "scores.csv", "detect"

    detector: str
    images: str
    low: float
    high: float
    count: int


class DetectionPoint(Row):
    """A row of detection.csv: the deployed detector's AUC at one epsilon, under a static attack or "adaptive"."""

    file, stage = "detection.csv", "detect"

    attack: str
    epsilon: float
    auc: Share
    low: Share
    high: Share


class TsnePoint(Row):
    """A row of tsne.csv: the embedding of one image in the plane."""

    file, stage = "tsne.csv", "detect"

    x: float
    y: float
    label: int
    predicted: int
    kind: Literal["natural", "adversarial"]
