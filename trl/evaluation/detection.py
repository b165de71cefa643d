"""How well a detector's scores (higher = more adversarial) tell adversarial from natural images."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from sklearn.metrics import auc, roc_curve
from torch import Tensor

from trl.errors import TrlError

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
    value = _figures(truth, scores, np.ones(len(truth)))
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in value}
    for _ in range(resamples):
        weights = np.concatenate(
            [generator.multinomial(size, np.full(size, 1 / size)) for size in (len(natural), len(adversarial))]
        )
        for name, figure in _figures(truth, scores, weights).items():
            drawn[name].append(figure)
    bounds = {name: np.quantile(figures, [0.025, 0.975]) for name, figures in drawn.items()}
    return {name: Interval(figure, float(bounds[name][0]), float(bounds[name][1])) for name, figure in value.items()}


def detection_auc(natural: Tensor, adversarial: Tensor) -> float:
    """The area under the ROC curve alone, as `detection_figures` gives it, without an interval."""
    truth, scores = _labelled(natural, adversarial)
    return _figures(truth, scores, np.ones(len(truth)))["auc"]


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
    false_positive, true_positive, _ = roc_curve(*_labelled(natural, adversarial))
    length = false_positive + true_positive  # rises from 0 to 2
    chosen = np.unique(np.searchsorted(length, np.linspace(0, 2, max_points)))
    return list(zip(false_positive[chosen].tolist(), true_positive[chosen].tolist(), strict=True))


def calibrate(natural: Tensor, false_alarms: float) -> float:
    """The smallest of the natural scores [n] that at most a share `false_alarms` of them exceeds: the threshold.

    TrlError for scores that are missing or not finite, or too few to tell such a share.
    """
    if natural.ndim != 1 or not natural.isfinite().all():
        raise TrlError(f"natural scores {tuple(natural.shape)} must be [n] and finite: check the embeddings")
    if not 0 < false_alarms < 1:
        raise TrlError(f"false_alarms must be between 0 and 1, not {false_alarms}")
    if len(natural) * false_alarms < 1:
        raise TrlError(
            f"{len(natural)} natural images cannot tell a false-alarm rate of {false_alarms}: "
            f"take {int(np.ceil(1 / false_alarms))} or more"
        )
    return float(np.quantile(natural.detach().cpu().double().numpy(), 1 - false_alarms, method="higher"))


def _figures(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The figures of one (re)sample, in which score i counts `weights[i]` times."""
    false_positive, true_positive, _ = roc_curve(truth, scores, sample_weight=weights, drop_intermediate=False)
    found, alarms = true_positive * weights[truth == 1].sum(), false_positive * weights[truth == 0].sum()
    precision = found[1:] / np.maximum(found[1:] + alarms[1:], 1e-300)
    return {
        "auc": float(auc(false_positive, true_positive)),
        "aupr": float((np.diff(true_positive) * precision).sum()),
        "fpr95": float(false_positive[np.argmax(true_positive >= 0.95 - 1e-12)]),
        "tpr01": float(true_positive[false_positive <= 0.01 + 1e-12].max()),
        "tpr05": float(true_positive[false_positive <= 0.05 + 1e-12].max()),
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
