"""What an attack does to the embeddings of one model: all analyses at once."""

from typing import NamedTuple

import torch

from trl.common.seeds import derive_seed
from trl.detectors import Observed
from trl.representation.shifts import knn_accuracy, shift_ratios, tsne
from trl.results.detect import Neighbours, Representation, TsnePoint


class Analysis(NamedTuple):
    """Shift ratios, accuracy of nearest neighbours, and a t-SNE map to look at."""

    representation: Representation
    knn: Neighbours
    tsne: list[TsnePoint]


def analyse(
    train: Observed, natural: Observed, adversarial: Observed, neighbours: int = 50, samples: int = 1000, seed: int = 0
) -> Analysis:
    """Compare `adversarial` images with the `natural` ones that they were made of, in the order of these.

    `neighbours` of the training images vote; the map is of at most `samples` images, one half natural, the other the
    same under attack, drawn by the `seed`.
    """
    labels = natural.labels
    known, _ = train.read()
    before, natural_logits = natural.read()
    after, logits = adversarial.read()
    r, r_prime = shift_ratios(before, labels, after, labels, logits.argmax(1))
    accuracies = [knn_accuracy(known, train.labels, features, labels, neighbours) for features in (before, after)]

    generator = torch.Generator().manual_seed(derive_seed(seed, "tsne"))
    some = torch.randperm(len(labels), generator=generator)[: samples // 2]
    places = tsne(torch.cat([before[some], after[some]]), seed).tolist()
    guesses = natural_logits.argmax(1)[some].tolist() + logits.argmax(1)[some].tolist()
    kinds = ["natural"] * len(some) + ["adversarial"] * len(some)
    points = [
        TsnePoint.model_validate({"x": round(x, 3), "y": round(y, 3), "label": label, "predicted": guess, "kind": kind})
        for (x, y), label, guess, kind in zip(places, labels[some].tolist() * 2, guesses, kinds, strict=True)
    ]
    return Analysis(
        Representation.model_validate({"r": r, "r_prime": r_prime}),
        Neighbours(natural=accuracies[0], adversarial=accuracies[1]),
        points,
    )
