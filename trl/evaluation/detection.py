"""How well a detector's scores (higher = more adversarial) tell adversarial from natural images."""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from trl.errors import TrlError


def detection_auc(natural: Tensor, adversarial: Tensor, succeeded: Tensor) -> dict[str, float | None]:
    """Area under the ROC curve, in [0, 1], of natural scores [n] against adversarial scores [m].

    `succeeded`, bool [m], says which adversarials are misclassified. Keys: "all", "successful" and "failed"
    adversarials; None where there are none. TrlError for scores that are missing or not finite.
    """
    if succeeded.dtype != torch.bool or succeeded.shape != adversarial.shape:
        raise TrlError(f"succeeded must be bool {tuple(adversarial.shape)}, one flag per adversarial score")
    truth, scores = _labelled(natural, adversarial)
    succeeded = succeeded.cpu()
    subsets = {"all": torch.ones_like(succeeded), "successful": succeeded, "failed": ~succeeded}
    areas: dict[str, float | None] = {}
    for subset, members in subsets.items():
        used = torch.cat([torch.ones(len(natural), dtype=torch.bool), members]).numpy()
        areas[subset] = float(roc_auc_score(truth[used], scores[used])) if members.any() else None
    return areas


def roc_points(natural: Tensor, adversarial: Tensor, max_points: int = 200) -> list[tuple[float, float]]:
    """The ROC curve of scores [n] and [m] as (false, true positive rate), from (0, 0) to (1, 1).

    At most `max_points` (≥ 2) points of the curve, spread evenly along its length.
    """
    false_positive, true_positive, _ = roc_curve(*_labelled(natural, adversarial))
    length = false_positive + true_positive  # rises from 0 to 2
    chosen = np.unique(np.searchsorted(length, np.linspace(0, 2, max_points)))
    return list(zip(false_positive[chosen].tolist(), true_positive[chosen].tolist(), strict=True))


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
