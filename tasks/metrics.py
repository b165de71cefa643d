"""Every name under which MLflow knows a figure: a function per result file. What does not exist is NaN.

MLflow's page Compare starts with the metric that was logged first, so the most telling one leads.
"""

from collections.abc import Iterable
from statistics import fmean

from trl.results import (
    ADAPTIVE,
    WORST,
    AttackResult,
    CertifiedPoint,
    CertifyResult,
    DetectorFigures,
    DetectResult,
    EnsembleResult,
    Epoch,
    Results,
    TrainResult,
)


def epoch_metrics(epoch: Epoch) -> dict[str, float]:
    """A row of training.csv, a step of the curves: val/robust, val/clean and train/….

    train/epoch is last, so that a store that has it has the whole row.
    """
    accuracies = {"val/robust": epoch.val_robust, "val/clean": epoch.val_clean}
    others = {name: value for name, value in epoch.columns.items() if name not in ("epoch", "val_clean", "val_robust")}
    return {**accuracies, **{f"train/{name}": value for name, value in others.items()}, "train/epoch": epoch.epoch}


def train_metrics(result: TrainResult) -> dict[str, float]:
    """train.json: train/…."""
    return {
        "train/best_epoch": result.best_epoch,
        "train/parameters": result.parameters,
        "train/total_seconds": result.seconds,
    }


def attack_metrics(result: AttackResult) -> dict[str, float]:
    """attack.json: clean/accuracy, and robust/… by attack and by part of an ensemble."""
    worst_first = {WORST: result.robust[WORST], **result.robust}
    robust = {f"robust/{name}": figures.accuracy for name, figures in worst_first.items()}
    stages = {
        f"robust/{name}/{part}": figures.accuracy
        for name, parts in result.stages.items()
        for part, figures in parts.items()
    }
    threats = {
        f"robust/{threat}/{name}": figures.accuracy
        for threat, found in result.threats.items()
        for name, figures in found.robust.items()
    }
    union = {"robust/union": result.union.accuracy} if result.union else {}
    counted = {"robust/warnings": len(result.warnings)}
    return {**robust, **union, **threats, **stages, "clean/accuracy": result.clean.accuracy, **counted}


def certify_metrics(result: CertifyResult, points: Iterable[CertifiedPoint]) -> dict[str, float]:
    """certify.json and certified.csv: certified/abstained, certified/mean_radius, and certified/… by radius."""
    radii = {f"certified/{point.radius:g}": point.accuracy for point in points}
    return {"certified/abstained": result.abstained, "certified/mean_radius": result.mean_radius, **radii}


def detect_metrics(result: DetectResult) -> dict[str, float]:
    """detect.json: all of the deployed detector (detect/…, reject/…), a few figures of each other (detect/<name>/…),
    validation/…, representation/… and knn/….
    """
    values = _deployed(result.deployed)
    for name, detector in result.detectors.items():
        if name != result.detector:
            values |= {f"detect/{name}/{figure}": value for figure, value in _other(detector).items()}
    for group in ("validation", "representation", "knn"):
        values |= {f"{group}/{figure}": value for figure, value in getattr(result, group)}
    return values


def ensemble_metrics(name: str, result: EnsembleResult) -> dict[str, float]:
    """ensemble.json: ensemble/<name>/…, means over the seeds."""
    seeds, folder = list(result.seeds.values()), f"ensemble/{name}"
    values = {f"{folder}/gain": [found.gain.value for found in seeds]}
    for kind in ("clean", "minmax", "average"):
        values[f"{folder}/{kind}"] = [getattr(found, kind).all.value for found in seeds]
        for method in result.methods:
            values[f"{folder}/{kind}/{method}"] = [getattr(found, kind).each[method].value for found in seeds]
    values |= {f"{folder}/weight/{method}": [found.weights[method] for found in seeds] for method in result.methods}
    return {figure: sum(found) / len(found) for figure, found in values.items()}


def comparison_metrics(results: Results) -> dict[str, float]:
    """<method>/… of a pipeline run: the mean over seeds of what its table compares; the worst cases first."""
    names = [f"robust/{name}" for name in reversed(results.attacks)]
    names += ["clean/accuracy", "reject/worst"]
    names += [f"detect/auc/{name}" for name in (*results.detection_attacks, ADAPTIVE)]
    values: dict[str, float] = {}
    for name in names:
        for method in results.methods:
            found = [(attack_metrics(m.attack) | detect_metrics(m.detect))[name] for m in results.of(method)]
            values[f"{method}/{name}"] = fmean(found)
    return values


def _deployed(detector: DetectorFigures) -> dict[str, float]:
    values = {
        "detect/threshold": detector.threshold,
        "detect/false_alarms": detector.false_alarms.value,
        "detect/warnings": len(detector.warnings),
    }
    for attack, subsets in {**detector.static, ADAPTIVE: detector.adaptive}.items():
        values |= {f"detect/{name}/{attack}": figure.value for name, figure in subsets.all}
        for subset, figures in (("successful", subsets.successful), ("failed", subsets.failed)):
            if figures:
                values[f"detect/auc_{subset}/{attack}"] = figures.auc.value
    kept = detector.rejection
    accuracies = {**kept.static, **kept.adaptive, "clean": kept.clean, WORST: kept.worst}
    return values | {f"reject/{images}": accuracy.accuracy for images, accuracy in accuracies.items()}


def _other(detector: DetectorFigures) -> dict[str, float]:
    attacks = {**detector.static, ADAPTIVE: detector.adaptive}
    return {
        **{f"auc/{attack}": subsets.all.auc.value for attack, subsets in attacks.items()},
        "reject/worst": detector.rejection.worst.accuracy,
        "warnings": len(detector.warnings),
    }
