"""Detection as curves: ROC, histograms of scores, and AUC against epsilon."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trl.detection.adaptive import Answers, answers_to, worst
from trl.detection.attacker import Attacker
from trl.detection.figures import by_subset, detection_figures, roc_points
from trl.detectors import Detector, Observed
from trl.results.detect import ADAPTIVE, DetectionPoint, RocPoint, ScoreBin

BINS = 50  # of the histograms of scores


def roc_rows(detector: str, pairs: Mapping[str, tuple[Answers, Answers]]) -> list[RocPoint]:
    """ROC curves of the natural answers against those under attack, by attack, for each subset that has images."""
    return [
        RocPoint.model_validate({"detector": detector, "attack": attack, "subset": subset, "fpr": fpr, "tpr": tpr})
        for attack, (natural, under) in pairs.items()
        for subset, points in by_subset(roc_points, natural.scores, under.scores, under.wrong).items()
        for fpr, tpr in points or ()
    ]


def score_histograms(detector: str, scores: Mapping[str, Tensor]) -> list[ScoreBin]:
    """Histograms of scores, float64 [n] by what the images are, over the range of most of them.

    Scores beyond are counted in the first and the last bin.
    """
    low, high = torch.cat(list(scores.values())).quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, max(high, low + 1e-9), BINS + 1, dtype=torch.float64)
    rows = []
    for images, values in scores.items():
        counts, _ = torch.histogram(values.clamp(edges[0], edges[-1]), edges)
        for i, count in enumerate(counts.int().tolist()):
            low, high = edges[i : i + 2].tolist()
            rows.append(ScoreBin(detector=detector, images=images, low=low, high=high, count=count))
    return rows


def auc_curve(attacker: Attacker, detector: Detector, test: Observed) -> list[DetectionPoint]:
    """AUC against epsilon, under the first static attack, and under the worst of it and the first adaptive one."""
    config, name = attacker.config.curve, next(iter(attacker.config.attacks))
    images = test.first(config.samples)
    natural = answers_to(detector, images)
    points = []
    for epsilon in sorted(set(config.epsilons)):
        found = {name: natural, ADAPTIVE: natural}
        if epsilon > 0:
            there = replace(attacker, epsilon=epsilon)
            static = answers_to(detector, there.static(name, images))
            found = {name: static, ADAPTIVE: worst([static, there.evading(detector, natural.scores, images)])}
        for attack, under in found.items():
            value, low, high = detection_figures(natural.scores, under.scores)["auc"]
            points.append(DetectionPoint(attack=attack, epsilon=epsilon, auc=value, low=low, high=high))
    return points
