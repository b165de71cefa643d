"""Stage detect: how well detectors tell one model's adversarial images from natural ones, in secret and openly."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import Stage, run_stage
from tasks.tracking import record_model

if TYPE_CHECKING:
    from torch import Tensor

    from trl.config import Detection
    from trl.data.base import ImageSet
    from trl.data.splits import Splits
    from trl.detection.adaptive import Answers, Guarded, MakeAttack
    from trl.detectors import Calibration, Detector
    from trl.models import Classifier
    from trl.threat import Threat

BINS = 50  # of the histograms of scores


def detect(stage: Stage) -> None:
    """Write the detectors' figures and curves, the analyses of the embeddings, and the detector to deploy."""
    from trl.common.errors import TrlError
    from trl.common.files import write_csv, write_json
    from trl.common.progress import say
    from trl.data import load_splits
    from trl.data.base import ImageSet
    from trl.detection.adaptive import answers, fit_calibrated
    from trl.detectors import build_detector, save_detector
    from trl.models import load_model, weights_sha256
    from trl.nn.device import choose_device
    from trl.threat import build_threat

    recipe, config, paths = stage.recipe, stage.recipe.detect, stage.model_paths
    model = load_model(paths.model, choose_device())
    splits = load_splits(stage.paths.data)
    test = ImageSet(splits.test.images[: config.samples], splits.test.labels[: config.samples])
    threat = build_threat(recipe.threat.norm, recipe.threat.epsilon if config.epsilon is None else config.epsilon)
    state = Path("checkpoints", stage.recipe_name, f"{stage.method}-{stage.seed}-detect")
    attacker = Attacker(model, config, threat, threat.epsilon, stage.seed, state)

    detectors: dict[str, tuple[Detector, Calibration]] = {}
    for name, spec in config.detectors.items():  # before anything is attacked: bad settings are found here
        detector = build_detector(spec.name, **spec.options)
        try:
            calibration = fit_calibrated(
                model, detector, splits.train, splits.validation, config.false_alarms, config.batch_size
            )
        except TrlError as error:
            raise TrlError(f"recipes.{stage.recipe_name}.detect: detector {name}: {error}") from None
        detectors[name] = detector, calibration

    adversarials = {name: attacker.static(name, test) for name in config.attacks}
    attacked = adversarials | _worst(stage, test, threat)
    figures: dict[str, Any] = {}
    roc: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for name, (detector, calibration) in detectors.items():
        natural = answers(model, detector, test.images, test.labels, config.batch_size)
        static = {
            attack: answers(model, detector, x_adv, test.labels, config.batch_size)
            for attack, x_adv in adversarials.items()
        }
        guarded = attacker.guarded(detector, calibration, test, attacked)
        figures[name] = _figures(calibration, natural, static, guarded)
        if name == config.detector:  # the others' figures suffice to compare them
            roc += _roc(name, natural, static, guarded)
            scores += _histograms(name, {"natural": natural, **static, "adaptive": guarded.adaptive})
        say(_line(stage, name, figures[name]))
        for warning in figures[name]["warnings"]:
            say(f"warning: {stage.method}-{stage.seed} {name}: {warning}")

    detector, calibration = detectors[config.detector]
    save_detector(detector, calibration, weights_sha256(paths.model), paths.detector)
    representation, tsne = _embeddings(stage, model, splits, test, next(iter(adversarials.values())))
    write_csv(paths.metrics / "roc.csv", roc)
    write_csv(paths.metrics / "scores.csv", scores)
    write_csv(paths.metrics / "detection.csv", list(_curve(attacker, detector, test)))
    write_csv(paths.metrics / "tsne.csv", tsne)
    write_json(
        paths.metrics / "detect.json",
        {
            "epsilon": threat.epsilon,
            "false_alarms": config.false_alarms,
            "detector": config.detector,
            "detectors": figures,
            "validation": _validation(attacker, detector, calibration, splits.validation),
            **representation,
        },
    )
    shutil.rmtree(state)
    record_model(stage)


@dataclass(frozen=True)
class Attacker:
    """The recipe's attacks on one model; at another `epsilon` than the threat's, their step sizes scale along."""

    model: "Classifier"
    config: "Detection"
    threat: "Threat"
    epsilon: float
    seed: int
    state: Path

    def static(self, name: str, images: "ImageSet") -> "Tensor":
        """What the attack `name`, which knows of no detector, makes of every image."""
        from trl.attacks import build_attack_at
        from trl.common.seeds import derive_seed
        from trl.evaluation import attack_all

        spec = self.config.attacks[name]
        attack = build_attack_at(self.epsilon, spec.name, self.threat, **spec.options)
        x, y, seed = images.images, images.labels, derive_seed(self.seed, name)
        return attack_all(self.model, x, y, attack, self._threat, self.config.batch_size, seed, state=self.state)

    def guarded(
        self, detector: "Detector", calibration: "Calibration", images: "ImageSet", static: "Mapping[str, Tensor]"
    ) -> "Guarded":
        """The first images under the adversarials `static` and under all attacks that know the detector."""
        from trl.detection.adaptive import attack_guarded

        n = self.config.adaptive.samples
        return attack_guarded(
            *(self.model, detector, calibration, images.images[:n], images.labels[:n]),
            {name: x_adv[:n] for name, x_adv in static.items()},
            {name: self._adaptive(name) for name in self.config.adaptive.attacks},
            *(self._threat, self.config.batch_size, self.seed),
            state=self.state,
        )

    def evading(self, detector: "Detector", natural: "Tensor", images: "ImageSet") -> "Answers":
        """To what the first attack that knows the detector makes of every image, to score below `natural` [n]."""
        from trl.detection.adaptive import evade

        make = self._adaptive(next(iter(self.config.adaptive.attacks)))
        return evade(
            *(self.model, detector, natural, images.images, images.labels, make, self._threat),
            *(self.config.batch_size, self.seed),
            state=self.state,
        )

    @property
    def _threat(self) -> "Threat":
        return replace(self.threat, epsilon=self.epsilon)

    def _adaptive(self, name: str) -> "MakeAttack":
        from trl.attacks import build_attack_at

        spec = self.config.adaptive.attacks[name]
        return lambda criterion: build_attack_at(self.epsilon, spec.name, self.threat, criterion, **spec.options)


def _worst(stage: Stage, test: "ImageSet", threat: "Threat") -> "dict[str, Tensor]":
    """What the stage attack left as the worst case of each image it attacked; the others as they are.

    AutoAttack is among its attacks, and a detector must not be credited with what only a weaker attack missed. Nothing
    if those images may lie outside the `threat`.
    """
    from trl.common.arrays import read_safetensors

    path = stage.model_paths.adversarials / "adversarials.safetensors"
    if stage.recipe.threat.epsilon > threat.epsilon:
        return {}
    images, stored = test.images / 255, read_safetensors(path)["adversarials"][: len(test)]
    images[: len(stored)] = stored
    return {"stage attack": images}


def _figures(
    calibration: "Calibration", natural: "Answers", static: "Mapping[str, Answers]", guarded: "Guarded"
) -> dict[str, Any]:
    """A detector's entry in detect.json."""
    from trl.evaluation.intervals import accuracy

    alarms = accuracy(natural.scores > calibration.threshold)
    correct = {name: accuracy(flags) for name, flags in guarded.correct.items()}
    adaptive = {name: figure for name, figure in correct.items() if name != "clean" and name not in guarded.static}
    return {
        "threshold": calibration.threshold,
        "false_alarms": {"value": alarms["accuracy"], "low": alarms["low"], "high": alarms["high"]},
        "static": {attack: _subsets(natural, answer) for attack, answer in static.items()},
        "adaptive": _subsets(guarded.natural, guarded.adaptive),
        "rejection": {
            "clean": correct["clean"],
            "static": {name: correct[name] for name in guarded.static},
            "adaptive": adaptive,
            "worst": list(adaptive.values())[-1],
        },
        "warnings": [f"{sign.name}: {sign.message}" for sign in guarded.signs],
    }


def _subsets(natural: "Answers", adversarial: "Answers") -> dict[str, Any]:
    from trl.detection.figures import by_subset, detection_figures

    found = by_subset(detection_figures, natural.scores, adversarial.scores, adversarial.wrong)
    return {
        subset: figures and {name: interval._asdict() for name, interval in figures.items()}
        for subset, figures in found.items()
    }


def _roc(
    detector: str, natural: "Answers", static: "Mapping[str, Answers]", guarded: "Guarded"
) -> Iterator[dict[str, Any]]:
    from trl.detection.figures import by_subset, roc_points

    pairs = {name: (natural, answer) for name, answer in static.items()}
    pairs["adaptive"] = guarded.natural, guarded.adaptive
    for attack, (without, under) in pairs.items():
        for subset, points in by_subset(roc_points, without.scores, under.scores, under.wrong).items():
            for fpr, tpr in points or ():
                yield {"detector": detector, "attack": attack, "subset": subset, "fpr": fpr, "tpr": tpr}


def _histograms(detector: str, answers: "Mapping[str, Answers]") -> Iterator[dict[str, Any]]:
    """Over the range of most scores; those beyond are counted in the first and the last bin."""
    import torch

    scores = {images: answer.scores for images, answer in answers.items()}
    low, high = torch.cat(list(scores.values())).quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, max(high, low + 1e-9), BINS + 1, dtype=torch.float64)
    for images, values in scores.items():
        counts, _ = torch.histogram(values.clamp(edges[0], edges[-1]), edges)
        for i, count in enumerate(counts.int().tolist()):
            yield {
                "detector": detector,
                "images": images,
                "low": edges[i].item(),
                "high": edges[i + 1].item(),
                "count": count,
            }


def _curve(attacker: Attacker, detector: "Detector", test: "ImageSet") -> Iterator[dict[str, Any]]:
    """AUC against epsilon, under the first static attack and the worst of it and the first adaptive one."""
    from trl.data.base import ImageSet
    from trl.detection.adaptive import answers, worst
    from trl.detection.figures import detection_figures

    config, n = attacker.config.curve, attacker.config.curve.samples
    images, name = ImageSet(test.images[:n], test.labels[:n]), next(iter(attacker.config.attacks))

    def answer(x: "Tensor") -> "Answers":
        return answers(attacker.model, detector, x, images.labels, attacker.config.batch_size)

    natural = answer(images.images)
    for epsilon in sorted(set(config.epsilons)):
        found = {name: natural, "adaptive": natural}
        if epsilon > 0:
            there = replace(attacker, epsilon=epsilon)
            static = answer(there.static(name, images))
            found = {
                name: static,
                "adaptive": worst([static, there.evading(detector, natural.scores, images)]),
            }
        for attack, under in found.items():
            value, low, high = detection_figures(natural.scores, under.scores)["auc"]
            yield {"attack": attack, "epsilon": epsilon, "auc": value, "low": low, "high": high}


def _validation(
    attacker: Attacker, detector: "Detector", calibration: "Calibration", validation: "ImageSet"
) -> dict[str, float]:
    """What classifier and detector reach on validation images: to choose between models without a look at the test."""
    from trl.data.base import ImageSet
    from trl.detection.figures import detection_auc

    n, name = attacker.config.adaptive.samples, next(iter(attacker.config.attacks))
    images = ImageSet(validation.images[:n], validation.labels[:n])
    found = attacker.guarded(detector, calibration, images, {name: attacker.static(name, images)})
    correct = [flags.double().mean().item() for flags in found.correct.values()]
    return {
        "auc": detection_auc(found.natural.scores, found.static[name].scores),
        "adaptive_auc": detection_auc(found.natural.scores, found.adaptive.scores),
        "clean": correct[0],
        "robust": correct[-1],
    }


def _embeddings(
    stage: Stage, model: "Classifier", splits: "Splits", test: "ImageSet", x_adv: "Tensor"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the attack does to the embeddings: shift ratios, accuracy of nearest neighbours; a t-SNE to look at."""
    import torch

    from trl.common.seeds import derive_seed
    from trl.detectors.observe import embed
    from trl.representation.shifts import knn_accuracy, shift_ratios, tsne

    config, labels = stage.recipe.detect, test.labels
    train, _ = embed(model, splits.train.images, config.batch_size)
    natural, natural_logits = embed(model, test.images, config.batch_size)
    adversarial, logits = embed(model, x_adv, config.batch_size)
    r, r_prime = shift_ratios(natural, labels, adversarial, labels, logits.argmax(1))
    knn = {
        kind: knn_accuracy(train, splits.train.labels, features, labels, config.neighbours)
        for kind, features in (("natural", natural), ("adversarial", adversarial))
    }

    generator = torch.Generator().manual_seed(derive_seed(stage.seed, "tsne"))
    some = torch.randperm(len(labels), generator=generator)[: config.tsne_samples // 2]
    places = tsne(torch.cat([natural[some], adversarial[some]]), seed=stage.seed).tolist()
    kinds = ["natural"] * len(some) + ["adversarial"] * len(some)
    classes = labels[some].tolist() * 2
    guesses = natural_logits.argmax(1)[some].tolist() + logits.argmax(1)[some].tolist()
    points = [
        {"x": round(x, 3), "y": round(y, 3), "label": label, "predicted": guess, "kind": kind}
        for (x, y), label, guess, kind in zip(places, classes, guesses, kinds, strict=True)
    ]
    return {"representation": {"r": r, "r_prime": r_prime}, "knn": knn}, points


def _line(stage: Stage, name: str, figures: Mapping[str, Any]) -> str:
    static = "  ".join(
        f"AUC {attack} {found['all']['auc']['value']:.3f}" for attack, found in figures["static"].items()
    )
    adaptive, rejecting = figures["adaptive"]["all"]["auc"]["value"], figures["rejection"]["worst"]["accuracy"]
    return (
        f"{stage.method}-{stage.seed} {name}: {static}  adaptive {adaptive:.3f}  robust with rejection {rejecting:.1%}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(detect, per_model=True))
