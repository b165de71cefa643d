"""Where adversarial images go in the embedding: shift between classes, nearest neighbours, a map in the plane."""

from typing import NamedTuple

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.metric.distances import pairwise_angular_distance

BLOCK = 2**22  # distances held at once
ROUNDING = 1e-12  # a mean distance below this is zero but for rounding
PERPLEXITY = 30.0  # t-SNE's number of effective neighbours (scikit-learn's default)


class ShiftRatios(NamedTuple):
    """Shift to the false class, `r` (higher is better), and from the true class, `r_prime` (lower is better)."""

    r: float | None
    r_prime: float | None


def shift_ratios(
    natural_features: Tensor,
    natural_labels: Tensor,
    adversarial_features: Tensor,
    true_labels: Tensor,
    predicted_labels: Tensor,
) -> ShiftRatios:
    """How far adversarials [m,d] lie from the natural images [n,d] of a class, in units of that class's own spread.

    For class k: the mean D between a set of adversarials and the naturals of k, divided by the mean D over pairs of
    distinct naturals of k; averaged over the classes where it is defined, None where it is for none. The set is
    - for `r`, the adversarials classified as k whose true class is another,
    - for `r_prime`, all adversarials crafted from k, successful or not.
    D is the angular distance 1 - |cos| (the TLA paper's analysis of its embeddings). Computed in float64, in blocks.
    """
    for features, *labels in (
        (natural_features, natural_labels),
        (adversarial_features, true_labels, predicted_labels),
    ):
        _check_features(features, *labels)
    natural, adversarial = natural_features.double(), adversarial_features.double()
    to_false: list[float] = []
    from_true: list[float] = []
    for k in sorted(set(natural_labels.tolist())):
        own = natural[natural_labels == k]
        pairs = len(own) * (len(own) - 1)
        spread = _sum_of_distances(own, own, distinct=True) / pairs if pairs else 0.0
        if spread < ROUNDING:
            continue
        for ratios, members in (
            (to_false, (predicted_labels == k) & (true_labels != k)),
            (from_true, true_labels == k),
        ):
            if members.any():
                others = adversarial[members]
                mean = _sum_of_distances(others, own) / (len(others) * len(own))
                ratios.append(mean / spread)
    return ShiftRatios(_mean(to_false), _mean(from_true))


def knn_accuracy(
    train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, neighbours: int = 50
) -> float:
    """Accuracy in [0, 1] on `features` [m,d] of a vote among the `neighbours` most similar (cosine) of [n,d]."""
    from sklearn.neighbors import KNeighborsClassifier

    _check_features(train_features, train_labels)
    _check_features(features, labels)
    if not 1 <= neighbours <= len(train_features):
        raise TrlError(f"{neighbours} neighbours of {len(train_features)} embeddings: choose from 1 to their number")
    classifier = KNeighborsClassifier(neighbours, metric="cosine")
    classifier.fit(train_features.cpu().numpy(), train_labels.cpu().numpy())
    return float(classifier.score(features.cpu().numpy(), labels.cpu().numpy()))


def tsne(features: Tensor, seed: int = 0) -> Tensor:
    """t-SNE map float32 [n,2] of embeddings [n,d], scaled to unit length so that only their directions count."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    _check_features(features)
    if len(features) <= PERPLEXITY:
        raise TrlError(f"t-SNE of {len(features)} embeddings: give more than its perplexity of {PERPLEXITY:.0f}")
    rows = normalize(features.cpu().double().numpy())
    # a random start, since scikit-learn's default (PCA) crashes where a model has collapsed to one embedding
    mapping = TSNE(perplexity=PERPLEXITY, init="random", random_state=seed)
    return torch.from_numpy(mapping.fit_transform(rows)).float()


def _sum_of_distances(u: Tensor, v: Tensor, distinct: bool = False) -> float:
    """Sum of D over all pairs of rows; with `distinct`, where v is u, a row is not paired with itself."""
    rows = max(1, BLOCK // len(v))
    total = 0.0
    for start in range(0, len(u), rows):
        distances = pairwise_angular_distance(u[start : start + rows], v)
        if distinct:
            distances.diagonal(start).zero_()  # a zero embedding is at distance 1, even from itself
        total += float(distances.sum())
    return total


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _check_features(features: Tensor, *labels: Tensor) -> None:
    if features.ndim != 2 or len(features) == 0 or any(y.shape != features.shape[:1] for y in labels):
        shapes = [tuple(y.shape) for y in labels]
        raise TrlError(f"embeddings {tuple(features.shape)} with labels {shapes}: give [n,d] and [n], n at least 1")
    if not features.isfinite().all():
        raise TrlError("an embedding is NaN or infinite: the model that made it is broken")
