"""The small result files of a pipeline run, read and checked: one folder per trained model."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from trl.common.errors import TrlError

File = TypeVar("File", bound=BaseModel)

WORST = "worst"  # the entry of attack.json that accumulates all attacks, sample by sample
ADAPTIVE = "adaptive"  # in the files of detection: the worst case over all attacks, also those that know the detector

Share = Annotated[float, Field(ge=0, le=1)]
Measure = Annotated[float, BeforeValidator(lambda value: math.nan if value in (None, "") else value)]
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


class Training(BaseModel):
    """train.json: the selected epoch and what the training took."""

    val_clean: Measure
    val_robust: Measure
    best_epoch: int
    epochs: int
    seconds: float
    parameters: int
    device: str
    weights: str


class Attack(BaseModel):
    """attack.json: accuracy on natural images, under each attack, and under all of them (`worst`).

    `stages`: what is left after each part of an ensemble; `warnings`: signs of gradient masking.
    """

    epsilon: float
    clean: Accuracy
    robust: dict[str, Accuracy]
    stages: dict[str, dict[str, Accuracy]] = {}
    warnings: list[str] = []


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


class Detect(BaseModel):
    """detect.json: every detector's figures, and which of them is the one to deploy (`detector`).

    `false_alarms` is the rate that the thresholds were calibrated for. `validation`: what detector and classifier reach
    on validation images, the figures by which a model is chosen for deployment.
    """

    epsilon: float
    false_alarms: Share
    detector: str
    detectors: dict[str, DetectorFigures]
    validation: dict[Literal["auc", "adaptive_auc", "clean", "robust"], Share]
    representation: Representation
    knn: Neighbours

    @property
    def deployed(self) -> DetectorFigures:
        """The figures of the detector to deploy."""
        return self.detectors[self.detector]


class CurvePoint(BaseModel):
    """A row of curve.csv: accuracy under `attack` at one epsilon."""

    attack: str
    epsilon: float
    accuracy: Share
    low: Share
    high: Share


class RocPoint(BaseModel):
    """A row of roc.csv; `attack` is "adaptive" for the worst case over all attacks that know the detector."""

    detector: str
    attack: str
    subset: Literal["all", "successful", "failed"]
    fpr: Share
    tpr: Share


class ScoreBin(BaseModel):
    """A row of scores.csv: how many test images score from `low` to `high`.

    `images` are "natural" ones, those of an attack, or "adaptive": the worst case over all attacks.
    """

    detector: str
    images: str
    low: float
    high: float
    count: int


class DetectionPoint(BaseModel):
    """A row of detection.csv: the deployed detector's AUC at one epsilon, under a static attack or "adaptive"."""

    attack: str
    epsilon: float
    auc: Share
    low: Share
    high: Share


class TsnePoint(BaseModel):
    """A row of tsne.csv: the embedding of one image in the plane."""

    x: float
    y: float
    label: int
    predicted: int
    kind: Literal["natural", "adversarial"]


@dataclass(frozen=True)
class ModelResults:
    """Everything measured on one trained model; `epochs` maps the columns of training.csv to their values."""

    method: str
    seed: int
    train: Training
    epochs: Mapping[str, Sequence[float]]
    attack: Attack
    curve: Sequence[CurvePoint]
    detect: Detect
    roc: Sequence[RocPoint]
    scores: Sequence[ScoreBin]
    detection: Sequence[DetectionPoint]
    tsne: Sequence[TsnePoint]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """By what each is about beside the model ("" or a detector), and what it says; those of stage attack first."""
        about = {"": self.attack.warnings}
        about |= {f"{name} detector": found.warnings for name, found in self.detect.detectors.items()}
        return [(what, warning) for what, warnings in about.items() for warning in warnings]


@dataclass(frozen=True)
class Results:
    """The results of all methods and seeds of one recipe, in the order in which they were asked for."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    models: tuple[ModelResults, ...]

    def of(self, method: str) -> list[ModelResults]:
        """The models of `method`, one per seed."""
        return [model for model in self.models if model.method == method]

    @property
    def epsilon(self) -> float:
        """Largest perturbation that the threat allows."""
        return self.models[0].attack.epsilon

    @property
    def attacks(self) -> list[str]:
        """The attacks in the order of the file, `worst` last."""
        return [name for name in self.models[0].attack.robust if name != WORST] + [WORST]

    @property
    def detection_attacks(self) -> list[str]:
        """The static attacks: the detectors were scored on them, and they know nothing of the detectors."""
        return list(self.models[0].detect.deployed.static)

    @property
    def detectors(self) -> list[str]:
        """The detectors, the one to deploy first."""
        detect = self.models[0].detect
        return [detect.detector, *(name for name in detect.detectors if name != detect.detector)]


def load_results(metrics_folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> Results:
    """Read `<metrics_folder>/<method>-<seed>/…` for every method and seed; the folder is that of one recipe.

    TrlError names a file that is missing, broken, or measured with other attacks or another epsilon than the rest.
    """
    models = tuple(_load_model(Path(metrics_folder), method, seed) for method in methods for seed in seeds)
    first = _settings(models[0])
    for model in models[1:]:
        for (file, stage), setting in _settings(model).items():
            if setting != first[file, stage]:
                path, other = (_folder(metrics_folder, m.method, m.seed) / file for m in (model, models[0]))
                raise _broken(path, f"measured in another way than {other} (attacks, epsilon or detector)", stage)
    return Results(tuple(methods), tuple(seeds), models)


def _settings(model: ModelResults) -> dict[tuple[str, str], Any]:
    """Per (file, stage): what must be the same in all models for their figures to be comparable."""
    attack, detect = model.attack, model.detect
    return {
        ("attack.json", "attack"): (attack.epsilon, set(attack.robust)),
        ("curve.csv", "attack"): {(point.attack, point.epsilon) for point in model.curve},
        ("detect.json", "detect"): (
            *(detect.epsilon, detect.false_alarms, detect.detector, set(detect.detectors)),
            set(detect.deployed.static),
        ),
        ("detection.csv", "detect"): {(point.attack, point.epsilon) for point in model.detection},
    }


def _folder(metrics_folder: Path, method: str, seed: int) -> Path:
    return Path(metrics_folder) / f"{method}-{seed}"


def _load_model(metrics_folder: Path, method: str, seed: int) -> ModelResults:
    folder = _folder(metrics_folder, method, seed)
    epochs = _read_rows(folder / "training.csv", "train", dict[str, Measure])
    missing = {"epoch", "loss", "val_clean", "val_robust"} - epochs[0].keys()
    if missing:
        raise _broken(folder / "training.csv", f"no column {', '.join(sorted(missing))}", "train")
    attack = _read(folder / "attack.json", "attack", Attack)
    if WORST not in attack.robust:
        raise _broken(folder / "attack.json", f"robust: no entry {WORST!r}", "attack")
    detect = _read(folder / "detect.json", "detect", Detect)
    if detect.detector not in detect.detectors:
        raise _broken(folder / "detect.json", f"detectors: no entry {detect.detector!r}", "detect")
    for name, figures in detect.detectors.items():
        if not set(figures.rejection.static) >= set(figures.static) == set(detect.deployed.static):
            raise _broken(folder / "detect.json", f"detectors.{name}: static: not the attacks of the others", "detect")
    return ModelResults(
        method=method,
        seed=seed,
        train=_read(folder / "train.json", "train", Training),
        epochs={column: [row[column] for row in epochs] for column in epochs[0]},
        attack=attack,
        curve=_read_rows(folder / "curve.csv", "attack", CurvePoint),
        detect=detect,
        roc=_read_rows(folder / "roc.csv", "detect", RocPoint),
        scores=_read_rows(folder / "scores.csv", "detect", ScoreBin),
        detection=_read_rows(folder / "detection.csv", "detect", DetectionPoint),
        tsne=_read_rows(folder / "tsne.csv", "detect", TsnePoint),
    )


def _read(path: Path, stage: str, model: type[File]) -> File:
    try:
        return model.model_validate_json(_text(path, stage))
    except ValidationError as error:
        raise _broken(path, _first(error), stage) from None


def _read_rows(path: Path, stage: str, row: Any) -> list[Any]:
    # a row cut short gets a word where its numbers should be, so that it is refused like any other broken one
    rows = list(csv.DictReader(_text(path, stage).splitlines(), restval="nothing"))
    if not rows:
        raise _broken(path, "no rows", stage)
    try:
        return TypeAdapter(list[row]).validate_python(rows)
    except ValidationError as error:
        raise _broken(path, _first(error), stage) from None


def _text(path: Path, stage: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _broken(path, error.strerror or "cannot be read", stage) from None
    except UnicodeDecodeError:
        raise _broken(path, "not a text file", stage) from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg']}"


def _broken(path: Path, why: str, stage: str) -> TrlError:
    return TrlError(f"{path}: {why}; run the {stage} stage (`dvc repro`)")
