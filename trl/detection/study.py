"""A recipe's detectors on one classifier: fitted, attacked, and what is found of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl.common.errors import TrlError
from trl.detection.adaptive import Answers, Guarded, answers_to, fit_observed
from trl.detection.attacker import Attacker
from trl.detection.curves import roc_rows, score_histograms
from trl.detection.figures import by_subset, detection_auc, detection_figures
from trl.detectors import Calibration, Detector, Observed, build_detector
from trl.evaluation.intervals import accuracy
from trl.results.base import Accuracy
from trl.results.detect import (
    ADAPTIVE,
    DetectorFigures,
    Figure,
    Figures,
    Rejection,
    RocPoint,
    ScoreBin,
    Subsets,
    Validation,
)

if TYPE_CHECKING:
    from trl.config import Detection


@dataclass(frozen=True)
class Study:
    """What one detector says to natural test images and to those of each static attack, and what it is worth against
    attacks that know it.
    """

    calibration: Calibration
    natural: Answers
    static: dict[str, Answers]
    guarded: Guarded

    def figures(self) -> DetectorFigures:
        """How well it detects, each figure with its 95 % interval."""
        alarms = accuracy(self.natural.scores > self.calibration.threshold)
        correct = {name: Accuracy(**accuracy(flags)) for name, flags in self.guarded.correct.items()}
        known = ("clean", *self.guarded.static)
        adaptive = {name: figure for name, figure in correct.items() if name not in known}
        return DetectorFigures(
            threshold=self.calibration.threshold,
            false_alarms=Figure(value=alarms["accuracy"], low=alarms["low"], high=alarms["high"]),
            static={attack: _subsets(self.natural, answer) for attack, answer in self.static.items()},
            adaptive=_subsets(self.guarded.natural, self.guarded.adaptive),
            rejection=Rejection(
                clean=correct["clean"],
                static={name: correct[name] for name in self.guarded.static},
                adaptive=adaptive,
                worst=list(adaptive.values())[-1],
            ),
            warnings=[f"{sign.name}: {sign.message}" for sign in self.guarded.signs],
        )

    def roc(self, detector: str) -> list[RocPoint]:
        """The ROC curves, for which the detector is called `detector`."""
        pairs = {name: (self.natural, answer) for name, answer in self.static.items()}
        pairs[ADAPTIVE] = self.guarded.natural, self.guarded.adaptive
        return roc_rows(detector, pairs)

    def histograms(self, detector: str) -> list[ScoreBin]:
        """The histograms of the scores, for which the detector is called `detector`."""
        found = {"natural": self.natural, **self.static, ADAPTIVE: self.guarded.adaptive}
        return score_histograms(detector, {images: answer.scores for images, answer in found.items()})


def fit_detectors(
    config: "Detection", train: Observed, validation: Observed
) -> dict[str, tuple[Detector, Calibration]]:
    """The detectors of `config` by name, fitted to natural training images, with thresholds from validation images.

    TrlError names the detector that cannot be fitted.
    """
    found = {}
    for name, spec in config.detectors.items():
        detector = build_detector(spec.name, **spec.options)
        try:
            found[name] = detector, fit_observed(detector, train, validation, config.false_alarms)
        except TrlError as error:
            raise TrlError(f"detector {name}: {error}") from None
    return found


def study_detector(
    attacker: Attacker,
    detector: Detector,
    calibration: Calibration,
    test: Observed,
    static: Mapping[str, Observed],
    found: Mapping[str, Observed],
) -> Study:
    """Attack the `detector`, and score the natural images `test` and what the `static` attacks made of all of them.

    `found`: further adversarials, which count in the worst case alone.
    """
    return Study(
        calibration,
        answers_to(detector, test),
        {attack: answers_to(detector, under) for attack, under in static.items()},
        attacker.adaptive(detector, calibration, test, {**static, **found}),
    )


def validate_detector(
    attacker: Attacker, detector: Detector, calibration: Calibration, validation: Observed
) -> Validation:
    """What classifier and detector reach on validation images: to choose between models without a look at the test.

    Under the first static attack and all that know the detector.
    """
    name, images = next(iter(attacker.config.attacks)), validation.first(attacker.config.adaptive.samples)
    found = attacker.adaptive(detector, calibration, images, {name: attacker.static(name, images)})
    correct = [flags.double().mean().item() for flags in found.correct.values()]
    return Validation(
        auc=detection_auc(found.natural.scores, found.static[name].scores),
        adaptive_auc=detection_auc(found.natural.scores, found.adaptive.scores),
        clean=correct[0],
        robust=correct[-1],
    )


def _subsets(natural: Answers, adversarial: Answers) -> Subsets:
    found = by_subset(detection_figures, natural.scores, adversarial.scores, adversarial.wrong)
    return Subsets.model_validate(
        {
            subset: figures and Figures.model_validate({name: part._asdict() for name, part in figures.items()})
            for subset, figures in found.items()
        }
    )
