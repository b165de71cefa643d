"""Stage detect: how well detectors tell one model's adversarial images from natural ones, in secret and openly."""

import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.fingerprint import state_folder
from tasks.stage import Stage, run_stage
from tasks.weights import check_weights

if TYPE_CHECKING:
    from trl.detectors import Observed
    from trl.results import DetectorFigures


def detect(stage: Stage) -> None:
    """Write the detectors' figures and curves, the analyses of the embeddings, and the detector to deploy."""
    from trl.common.errors import TrlError
    from trl.common.progress import say
    from trl.data import load_splits
    from trl.detection.attacker import Attacker
    from trl.detection.curves import auc_curve
    from trl.detection.study import fit_detectors, study_detector, validate_detector
    from trl.detectors import Observed, save_detector
    from trl.models import load_model
    from trl.nn.device import choose_device
    from trl.representation.analysis import analyse
    from trl.results import DetectionPoint, DetectResult, RocPoint, ScoreBin, TsnePoint
    from trl.threat import build_threat

    recipe, config, paths = stage.recipe, stage.recipe.detect, stage.model_paths
    model = load_model(paths.model, choose_device())
    weights = check_weights(paths)
    splits = load_splits(stage.paths.data)
    train, validation, test = (
        Observed(model, data.images[:n], data.labels[:n], config.batch_size)
        for data, n in ((splits.train, None), (splits.validation, None), (splits.test, config.samples))
    )
    threat = build_threat(**recipe.threat.model_dump())
    if config.epsilon is not None:
        threat = replace(threat, epsilon=config.epsilon)
    state = state_folder("detect", stage, weights)
    attacker = Attacker(model, config, threat, threat.epsilon, stage.seed, state)
    try:
        detectors = fit_detectors(config, train, validation)  # before any attack: bad settings are found here
    except TrlError as error:
        raise TrlError(f"recipes.{stage.recipe_name}.detect: {error}") from None

    static = {name: attacker.static(name, test) for name in config.attacks}
    # those images may lie outside of a smaller threat
    found = {} if recipe.threat.epsilon > threat.epsilon else {"stage attack": _worst(stage, test)}
    figures = {}
    for name, (detector, calibration) in detectors.items():
        study = study_detector(attacker, detector, calibration, test, static, found)
        figures[name] = study.figures()
        if name == config.detector:  # the others' figures suffice to compare them
            roc, scores = study.roc(name), study.histograms(name)
        say(_line(stage, name, figures[name]))
        for warning in figures[name].warnings:
            say(f"warning: {stage.method}-{stage.seed} {name}: {warning}")

    detector, calibration = detectors[config.detector]
    analysis = analyse(train, test, next(iter(static.values())), config.neighbours, config.tsne_samples, stage.seed)
    curve = auc_curve(attacker, detector, test)
    result = DetectResult(
        epsilon=threat.epsilon,
        false_alarms=config.false_alarms,
        detector=config.detector,
        detectors=figures,
        validation=validate_detector(attacker, detector, calibration, validation),
        representation=analysis.representation,
        knn=analysis.knn,
        settings=config.model_dump(mode="json"),
    )
    stage.check_inputs()
    save_detector(detector, calibration, weights, paths.detector)
    RocPoint.write(paths.metrics, roc)
    ScoreBin.write(paths.metrics, scores)
    DetectionPoint.write(paths.metrics, curve)
    TsnePoint.write(paths.metrics, analysis.tsne)
    result.write(paths.metrics)
    shutil.rmtree(state)


def _worst(stage: Stage, test: "Observed") -> "Observed":
    """What the stage attack left as the worst case of each image it attacked; the others as they are.

    AutoAttack is among its attacks, and a detector must not be credited with what only a weaker attack missed.
    """
    from trl.common.arrays import read_safetensors

    path = stage.model_paths.adversarials / "adversarials.safetensors"
    images, stored = test.images / 255, read_safetensors(path)["adversarials"][: len(test)]
    images[: len(stored)] = stored
    return test.become(images)


def _line(stage: Stage, name: str, figures: "DetectorFigures") -> str:
    static = "  ".join(f"AUC {attack} {found.all.auc.value:.3f}" for attack, found in figures.static.items())
    adaptive, rejecting = figures.adaptive.all.auc.value, figures.rejection.worst.accuracy
    return (
        f"{stage.method}-{stage.seed} {name}: {static}  adaptive {adaptive:.3f}  robust with rejection {rejecting:.1%}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(detect, per_model=True))
