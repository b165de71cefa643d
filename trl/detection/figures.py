"""How well a detector's scores (higher = more adversarial) tell adversarial from natural images."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from trl.common.errors import TrlError

SUBSETS = ("all", "successful", "failed")
Figure = TypeVar("Figure")


class Interval(NamedTuple):
    """An estimate with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


def detection_figures(natural: Tensor, adversarial: Tensor, resamples: int = 200, seed: int = 0) -> dict[str, Interval]:
    """The figures of natural scores [n] against adversarial scores [m], with percentile bootstrap intervals.

    `auc`: area under the ROC curve. `aupr`: average precision, adversarial being the class to find (it depends on
    n : m). `fpr95`: false alarms where 95 % of the adversarials are found. `tpr01`, `tpr05`: the share found at most
    1 % and 5 % false alarms. Natural and adversarial scores are resampled apart, `resamples` times (Efron 1979).
    TrlError for scores that are missing or not finite.
    """
    truth, scores = _labelled(natural, adversarial)
    sizes = len(natural), len(adversarial)
    generator = np.random.default_rng(seed)
    drawn = [generator.multinomial(size, np.full(size, 1 / size), resamples) for size in sizes]
    weights = np.concatenate([np.ones((1, sum(sizes)), int), np.concatenate(drawn, 1)])
    figures = _figures(truth, scores, weights)
    bounds = {name: np.quantile(values[1:], [0.025, 0.975]) for name, values in figures.items()}
    return {
        name: Interval(float(values[0]), float(bounds[name][0]), float(bounds[name][1]))
        for name, values in figures.items()
    }


def detection_auc(natural: Tensor, adversarial: Tensor) -> float:
    """The area under the ROC curve alone, as `detection_figures` gives it, without an interval."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(natural, adversarial)))


def by_subset(
    figure: Callable[[Tensor, Tensor], Figure], natural: Tensor, adversarial: Tensor, succeeded: Tensor
) -> dict[str, Figure | None]:
    """`figure(natural, chosen)` for "all", "successful" and "failed" adversarials; None where there are none.

    `succeeded`: bool [m], which of the adversarial scores [m] belong to misclassified images.
    """
    if succeeded.dtype != torch.bool or succeeded.shape != adversarial.shape:
        raise TrlError(f"succeeded must be bool {tuple(adversarial.shape)}, one flag per adversarial score")
    _labelled(natural, adversarial)
    succeeded = succeeded.to(adversarial.device)
    members = dict(zip(SUBSETS, (torch.ones_like(succeeded), succeeded, ~succeeded), strict=True))
    return {name: figure(natural, adversarial[chosen]) if chosen.any() else None for name, chosen in members.items()}


def roc_points(natural: Tensor, adversarial: Tensor, max_points: int = 200) -> list[tuple[float, float]]:
    """The ROC curve of scores [n] and [m] as (false, true positive rate), from (0, 0) to (1, 1).

    At most `max_points` (≥ 2) points of the curve, spread evenly along its length.
    """
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(*_labelled(natural, adversarial))
    length = false_positive + true_positive  # rises from 0 to 2
    chosen = np.unique(np.searchsorted(length, np.linspace(0, 2, max_points)))
    return list(zip(false_positive[chosen].tolist(), true_positive[chosen].tolist(), strict=True))


def _figures(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The figures [r] of r (re)samples, in which score i counts `weights[:, i]` times.

    What scikit-learn's `roc_curve` and `average_precision_score` give, for all of them in one go: a tenth of the time.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]), 1))  # the last one of equal scores
    found, alarms = (
        np.pad((weights * (truth == kind))[:, order].cumsum(1)[:, ends], ((0, 0), (1, 0))) for kind in (1, 0)
    )
    true_positive, false_positive = found / found[:, -1:], alarms / alarms[:, -1:]
    precision = found[:, 1:] / np.maximum(found + alarms, 1)[:, 1:]
    enough = np.argmax(true_positive >= 0.95 - 1e-12, 1)
    return {
        "auc": np.trapezoid(true_positive, false_positive, axis=1),
        "aupr": (np.diff(true_positive) * precision).sum(1),
        "fpr95": np.take_along_axis(false_positive, enough[:, None], 1)[:, 0],
        "tpr01": np.where(false_positive <= 0.01 + 1e-12, true_positive, 0).max(1),
        "tpr05": np.where(false_positive <= 0.05 + 1e-12, true_positive, 0).max(1),
    }


def _labelled(natural: Tensor, adversarial: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class (1 = adversarial) and score of every image."""
    if natural.ndim != 1 or adversarial.ndim != 1 or len(natural) == 0 or len(adversarial) == 0:
        raise TrlError(
            f"scores {tuple(natural.shape)} and {tuple(adversarial.shape)}: give at least one of each, as [n]"
        )
    scores = torch.cat([natural.detach().cpu().double(), adversarial.detach().cpu().double()]).numpy()
    if not np.isfinite(scores).all():
        raise TrlError("a detection score is NaN or infinite: check the embeddings that the detector was given")
    return np.repeat([0, 1], [len(natural), len(adversarial)]), scores
