"""A classifier with a detector beside it, under attacks that know nothing of the detector and under attacks that do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl.attacks.base import Attack
from trl.attacks.criterion import Both, Criterion, Misclassified, Strategy, Undetected
from trl.attacks.gradient_free import is_gradient_free
from trl.common.errors import TrlError
from trl.data.base import ImageSet
from trl.detection.credit import check_credit, check_score
from trl.detectors.base import Detector
from trl.detectors.calibration import Calibration, calibrate
from trl.detectors.observe import Observed
from trl.evaluation.evaluate import evaluate
from trl.evaluation.masking import check_results
from trl.evaluation.run import attack_all
from trl.evaluation.signs import Sign
from trl.nn.inference import device_of, try_out
from trl.threat import Threat

STRATEGIES: tuple[Strategy, ...] = ("selective", "orthogonal")
MakeAttack = Callable[[Criterion], Attack]


class Answers(NamedTuple):
    """What becomes of images: the detector's scores, float64 [n], and which are misclassified, bool [n]; on the CPU."""

    scores: Tensor
    wrong: Tensor


@dataclass(frozen=True)
class Guarded:
    """What `attack_guarded` found, in the order of the images.

    `static`: by attack that knows nothing of the detector. `adaptive`: the worst per image over all attacks.
    `correct`: bool [n], "clean" for natural images that are classified correctly and accepted; by static attack, those
    of them whose adversarial is classified correctly or rejected; and by adaptive attack and strategy what is left of
    those that withstood all static attacks and the adaptive ones before it. The last entry is the worst case.
    `signs`: that the detector may be credited with more than it does; look at them before you believe.
    """

    natural: Answers
    static: dict[str, Answers]
    adaptive: Answers
    correct: dict[str, Tensor]
    signs: list[Sign]


def answers(model: nn.Module, detector: Detector, x: Tensor, y: Tensor, batch_size: int = 500) -> Answers:
    """Of images x (uint8, or float in [0, 1]) with labels y [n]."""
    return answers_to(detector, Observed(model, x, y, batch_size))


def answers_to(detector: Detector, images: Observed) -> Answers:
    """The same of images that several detectors may read."""
    seen, logits = images.read(detector.reads)
    return Answers(detector.score(seen).cpu(), logits.argmax(1) != images.labels.cpu())


def fit_calibrated(
    model: nn.Module,
    detector: Detector,
    train: ImageSet,
    validation: ImageSet,
    false_alarms: float,
    batch_size: int = 500,
) -> Calibration:
    """Fit the detector to natural training images, on the model's device; its threshold from natural validation images.

    Whether the classifier gets the validation images right makes no difference: those that it gets wrong count, too.
    TrlError for a model that cannot be evaluated or does not show what the detector reads.
    """
    known, unseen = (Observed(model, data.images, data.labels, batch_size) for data in (train, validation))
    return fit_observed(detector, known, unseen, false_alarms)


def fit_observed(detector: Detector, train: Observed, validation: Observed, false_alarms: float) -> Calibration:
    """The same with images that several detectors may read."""
    try_out(validation.model, validation.images)
    device = device_of(train.model)
    seen, _ = train.read(detector.reads)
    detector.fit(seen.to(device), train.labels.to(device))
    return calibrate(answers_to(detector, validation).scores, false_alarms)


def attack_guarded(
    model: nn.Module,
    detector: Detector,
    calibration: Calibration,
    x: Tensor,
    y: Tensor,
    static: Mapping[str, Tensor],
    adaptive: Mapping[str, MakeAttack],
    threat: Threat,
    batch_size: int = 500,
    seed: int = 0,
    *,
    state: Path | None = None,
    key: str | None = None,
) -> Guarded:
    """Attack classifier and detector at once: an image is lost if what becomes of it is misclassified and accepted.

    `static`: adversarial images [n,…] by name, which were made without the detector. `adaptive`: attacks by name, each
    made for a criterion; they know the detector and its threshold, and run with each of the strategies on what is left,
    those that use no gradient (`gradient_free`) once, by the first of them, and last: it shows what the others miss.
    The first of them also searches for the lowest score that a misclassified image can have, whatever the threshold
    (`evade`): with all others, that is what an adaptive AUC is measured on. Other arguments and errors are those of
    `evaluate`.
    """
    images = Observed(model, x, y, batch_size)
    under = {name: images.become(x_adv) for name, x_adv in static.items()}
    return attack_observed(detector, calibration, images, under, adaptive, threat, seed, state=state, key=key)


def attack_observed(
    detector: Detector,
    calibration: Calibration,
    images: Observed,
    static: Mapping[str, Observed],
    adaptive: Mapping[str, MakeAttack],
    threat: Threat,
    seed: int = 0,
    *,
    state: Path | None = None,
    key: str | None = None,
) -> Guarded:
    """The same with images that several detectors may read."""
    if not adaptive:
        raise TrlError("there are no attacks that know the detector: give at least one")
    for name in static:
        if name in ("clean", *(f"{name} {strategy}" for name in adaptive for strategy in STRATEGIES)):
            raise TrlError(f"a static attack is called {name!r}, as other results are: choose another name")
    model, x, y, batch_size = images.model, images.images, images.labels, images.batch_size
    natural = answers_to(detector, images)
    found = {name: answers_to(detector, x_adv) for name, x_adv in static.items()}
    correct = {"clean": ~natural.wrong & (natural.scores <= calibration.threshold)}
    for name, answer in found.items():
        correct[name] = correct["clean"] & ~(answer.wrong & (answer.scores <= calibration.threshold))

    undetected = Undetected(detector, calibration.threshold, calibration.scale)
    made = {
        f"{name} {criterion.strategy}": attack
        for name, make in adaptive.items()
        for criterion, attack in _by_strategy(make, undetected)
    }
    free = [name for name, attack in made.items() if is_gradient_free(attack)]
    attacks = dict(sorted(made.items(), key=lambda item: item[0] in free))
    left = torch.stack(list(correct.values())).all(0)
    rows = left.nonzero().squeeze(1)
    candidates = list(found.values())
    if len(rows):
        result = evaluate(
            *(model, x[rows.to(x.device)], y[rows.to(y.device)], attacks, threat, batch_size, seed),
            criterion=Misclassified() & undetected,
            cumulative=True,
            checks=False,
            state=state,
            key=key,
        )
        for name in attacks:
            correct[name] = torch.zeros_like(left).index_put((rows,), result.correct[name])
        evading = answers(model, detector, result.adversarials, y[rows.to(y.device)], batch_size)
        candidates.append(Answers(*(a.index_put((rows,), b) for a, b in zip(natural, evading, strict=True))))
    else:
        correct |= dict.fromkeys(attacks, left)
    first = next(iter(adaptive.values()))
    candidates.append(
        evade(model, detector, natural.scores, x, y, first, threat, batch_size, seed, state=state, key=key)
    )
    plain = torch.stack([~answer.wrong for answer in (natural, *found.values())]).all(0)
    signs = [
        *check_score(model, detector, x),
        # no attack as one of a single step: in books of what is left, it also has the credit of those before it
        *check_results(correct, gradient_free=free, one_step=()),
        *check_credit(torch.stack(list(correct.values())).all(0), plain),
    ]
    return Guarded(natural, found, worst(candidates), correct, signs)


def evade(
    model: nn.Module,
    detector: Detector,
    natural: Tensor,
    x: Tensor,
    y: Tensor,
    make_attack: MakeAttack,
    threat: Threat,
    batch_size: int = 500,
    seed: int = 0,
    *,
    state: Path | None = None,
    key: str | None = None,
) -> Answers:
    """To images x [n,…] when the attack makes each misclassified with as low a score as it finds, below `natural` [m].

    With each of the strategies, or once if the attack uses no gradient; what counts is the worst per image.
    """
    undetected = Undetected(detector, float(natural.min()), float(natural.std()) or 1.0)
    found = []
    for criterion, attack in _by_strategy(make_attack, undetected):
        # an attack of the caller's need not tell its criterion
        own = None if key is None else f"{key}, {criterion!r}"
        x_adv = attack_all(model, x, y, attack, threat, batch_size, seed, state=state, key=own)
        found.append(answers(model, detector, x_adv, y, batch_size))
    return worst(found)


def _by_strategy(make: MakeAttack, undetected: Undetected) -> Iterator[tuple[Both, Attack]]:
    """The attack for each of the strategies, which differ in the gradient's direction alone: without one, once."""
    for strategy in STRATEGIES:
        criterion = Both(Misclassified(), undetected, strategy)
        attack = make(criterion)
        yield criterion, attack
        if is_gradient_free(attack):
            return


def worst(candidates: Sequence[Answers]) -> Answers:
    """Per image, the misclassified one with the lowest score; where none is misclassified, the first."""
    scores = torch.stack([answer.scores.where(answer.wrong, torch.inf) for answer in candidates]).amin(0)
    return Answers(scores.where(scores < torch.inf, candidates[0].scores), scores < torch.inf)
