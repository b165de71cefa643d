"""All that a pipeline run found, read and checked: one folder of result files per trained model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl.results.attack import WORST, AttackResult, CurvePoint
from trl.results.base import Document, Row, broken
from trl.results.certify import CertifiedPoint, CertifyResult
from trl.results.detect import DetectionPoint, DetectResult, RocPoint, ScoreBin, TsnePoint
from trl.results.ensemble import EnsembleResult
from trl.results.train import Epoch, TrainResult


@dataclass(frozen=True)
class ModelResults:
    """Everything measured on one trained model; `certify` is None, and `certified` empty, if it was not certified."""

    method: str
    seed: int
    training: Sequence[Epoch]
    train: TrainResult
    attack: AttackResult
    curve: Sequence[CurvePoint]
    detect: DetectResult
    roc: Sequence[RocPoint]
    scores: Sequence[ScoreBin]
    detection: Sequence[DetectionPoint]
    tsne: Sequence[TsnePoint]
    certify: CertifyResult | None = None
    certified: Sequence[CertifiedPoint] = ()

    @property
    def epochs(self) -> Mapping[str, Sequence[float]]:
        """The columns of training.csv, by name."""
        rows = [epoch.columns for epoch in self.training]
        return {column: [row[column] for row in rows] for column in rows[0]}

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """By what each is about beside the model ("" or a detector), and what it says; those of stage attack first."""
        about = {"": self.attack.warnings}
        about |= {f"{name} detector": found.warnings for name, found in self.detect.detectors.items()}
        return [(what, warning) for what, warnings in about.items() for warning in warnings]


@dataclass(frozen=True)
class Results:
    """The results of all methods, seeds and ensembles of one recipe, in the order in which they were asked for."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    models: tuple[ModelResults, ...]
    ensembles: Mapping[str, EnsembleResult] = field(default_factory=dict)

    def of(self, method: str) -> list[ModelResults]:
        """The models of `method`, one per seed."""
        return [model for model in self.models if model.method == method]

    @property
    def certified(self) -> list[str]:
        """The methods whose models were certified."""
        return [method for method in self.methods if all(model.certify for model in self.of(method))]

    @property
    def epsilon(self) -> float:
        """Largest perturbation that the threat allows."""
        return self.models[0].attack.epsilon

    @property
    def attacks(self) -> list[str]:
        """The attacks in the order of the file, `worst` last."""
        return [name for name in self.models[0].attack.robust if name != WORST] + [WORST]

    @property
    def threats(self) -> list[str]:
        """The threats beside the recipe's."""
        return list(self.models[0].attack.threats)

    @property
    def detection_attacks(self) -> list[str]:
        """The static attacks: the detectors were scored on them, and they know nothing of the detectors."""
        return list(self.models[0].detect.deployed.static)

    @property
    def detectors(self) -> list[str]:
        """The detectors, the one to deploy first."""
        detect = self.models[0].detect
        return [detect.detector, *(name for name in detect.detectors if name != detect.detector)]


def load_results(
    metrics_folder: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    certified: Sequence[str] = (),
    ensembles: Sequence[str] = (),
) -> Results:
    """Read `<metrics_folder>/<method>-<seed>/…` for every method and seed, and `ensembles/<name>/…` for every ensemble.

    The folder is that of one recipe.

    Certificates are read for the methods `certified` alone: a file of any other is left over from an earlier run.
    TrlError names a file that is missing, broken, or measured with other attacks or another epsilon than the rest.
    """
    models = [
        load_model_results(metrics_folder, method, seed, method in certified) for method in methods for seed in seeds
    ]
    return collect(metrics_folder, methods, seeds, models, ensembles)


def collect(
    metrics_folder: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    models: Sequence[ModelResults],
    ensembles: Sequence[str] = (),
) -> Results:
    """The results of models that were read already, with those of the ensembles, which are read.

    TrlError names a file that is missing, broken or was measured in another way.
    """
    first: dict[type[Document] | type[Row], tuple[ModelResults, Any]] = {}
    for model in models:
        for kind, setting in _settings(model).items():
            earlier, expected = first.setdefault(kind, (model, setting))
            if setting != expected:
                path, other = (_folder(metrics_folder, m.method, m.seed) / kind.file for m in (model, earlier))
                why = f"measured in another way than {other} (attacks, epsilon, detector or smoothing)"
                raise broken(path, why, kind.stage)
    together = {}
    for name in ensembles:
        folder = Path(metrics_folder) / "ensembles" / name
        together[name] = EnsembleResult.read(folder)
        if set(together[name].seeds) != set(seeds):
            raise broken(folder / EnsembleResult.file, "measured for other seeds", EnsembleResult.stage)
    return Results(tuple(methods), tuple(seeds), tuple(models), together)


def load_model_results(metrics_folder: Path, method: str, seed: int, certified: bool = False) -> ModelResults:
    """Read `<metrics_folder>/<method>-<seed>/…`, with certificates if `certified`.

    TrlError names a file that is missing or broken.
    """
    folder = _folder(metrics_folder, method, seed)
    return ModelResults(
        method=method,
        seed=seed,
        training=Epoch.read(folder),
        train=TrainResult.read(folder),
        attack=AttackResult.read(folder),
        curve=CurvePoint.read(folder),
        detect=DetectResult.read(folder),
        roc=RocPoint.read(folder),
        scores=ScoreBin.read(folder),
        detection=DetectionPoint.read(folder),
        tsne=TsnePoint.read(folder),
        certify=CertifyResult.read(folder) if certified else None,
        certified=CertifiedPoint.read(folder) if certified else (),
    )


def _settings(model: ModelResults) -> dict[type[Document] | type[Row], Any]:
    """By file: what must be the same in all models for their figures to be comparable."""
    attack, detect, smoothed = model.attack, model.detect, model.certify
    found: dict[type[Document] | type[Row], Any] = {
        AttackResult: (
            *(attack.epsilon, set(attack.robust)),
            {name: (threat.norm, threat.epsilon, threat.region) for name, threat in attack.threats.items()},
        ),
        CurvePoint: {(point.attack, point.epsilon) for point in model.curve},
        DetectResult: (
            *(detect.epsilon, detect.false_alarms, detect.detector, set(detect.detectors)),
            set(detect.deployed.static),
        ),
        DetectionPoint: {(point.attack, point.epsilon) for point in model.detection},
    }
    if smoothed:
        found[CertifyResult] = (smoothed.sigma, smoothed.selection, smoothed.samples, smoothed.alpha, smoothed.images)
        found[CertifiedPoint] = {point.radius for point in model.certified}
    return found


def _folder(metrics_folder: Path, method: str, seed: int) -> Path:
    return Path(metrics_folder) / f"{method}-{seed}"
