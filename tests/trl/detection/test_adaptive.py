from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import Attack, Criterion, build_attack
from trl.attacks.gradient_free import gradient_free
from trl.common.errors import TrlError
from trl.data.base import ImageSet
from trl.data.digits import digits
from trl.detection.adaptive import Answers, Guarded, MakeAttack, answers, attack_guarded, evade, fit_calibrated, worst
from trl.detection.figures import detection_auc
from trl.detectors import DETECTORS, Calibration, Detector, build_detector
from trl.detectors.gaussian import GaussianDetector
from trl.detectors.observe import embed
from trl.evaluation import attack_all
from trl.models import Classifier, build_model
from trl.threat import Linf

THREAT = Linf(0.14)
CALIBRATION = Calibration(0.01, 0.0, 1.0)


class Setting:
    """A network trained on natural digits, the images it is tested on, and what PGD makes of them."""

    def __init__(self) -> None:
        data = digits(None)
        self.train = ImageSet(data.train.images[:900], data.train.labels[:900])
        self.validation = ImageSet(data.train.images[900:], data.train.labels[900:])
        self.test = ImageSet(data.test.images[:100], data.test.labels[:100])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = build_model("mlp", 10, (1, 8, 8), width=32, depth=2)
            optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
            for _ in range(100):
                optimizer.zero_grad()
                logits = self.model(self.train.images / 255)
                nn.functional.cross_entropy(logits, self.train.labels).backward()
                optimizer.step()
        attack = build_attack("pgd", THREAT, steps=20)
        self.static = {"pgd": attack_all(self.model, self.test.images, self.test.labels, attack, THREAT)}

    def fit(self, name: str) -> tuple[Detector, Calibration]:
        detector = build_detector(name)
        return detector, fit_calibrated(self.model, detector, self.train, self.validation, 0.01)

    def attack(self, detector: Detector, calibration: Calibration, state: Path | None = None) -> Guarded:
        adaptive = {"apgd": lambda criterion: build_attack("apgd", THREAT, criterion, steps=20)}
        images = self.test.images, self.test.labels
        return attack_guarded(self.model, detector, calibration, *images, self.static, adaptive, THREAT, state=state)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("name", DETECTORS.names())
def test_an_attacker_who_knows_the_detector_does_better(setting: Setting, name: str) -> None:
    detector, calibration = setting.fit(name)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    found = setting.attack(detector, calibration)
    static = detection_auc(found.natural.scores, found.static["pgd"].scores)
    adaptive = detection_auc(found.natural.scores, found.adaptive.scores)
    assert adaptive < static - 0.05  # the noise of 100 images is below that
    assert found.adaptive.wrong.sum() >= found.static["pgd"].wrong.sum()

    # who withstands the later attacks withstands the earlier ones, and is right and accepted without any
    order = list(found.correct.values())
    assert list(found.correct) == ["clean", "pgd", "apgd selective", "apgd orthogonal"]
    assert torch.equal(order[0], ~found.natural.wrong & (found.natural.scores <= calibration.threshold))
    for earlier, later in pairwise(order):
        assert not (later & ~earlier).any()
    assert order[-1].sum() < order[1].sum()
    assert found.signs == []  # an honest detector that falls

    # the detector and the model's answers are what they were
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    again = answers(setting.model, detector, setting.test.images, setting.test.labels)
    assert torch.equal(again.scores, found.natural.scores)


def test_the_energy_detector_is_broken(setting: Setting) -> None:
    """It is weak by construction: an attacker can make the logits of a wrong class as large as he likes."""
    found = setting.attack(*setting.fit("energy"))
    static = detection_auc(found.natural.scores, found.static["pgd"].scores)
    adaptive = detection_auc(found.natural.scores, found.adaptive.scores)
    assert static > 0.5
    assert adaptive < 0.5
    assert found.adaptive.wrong.float().mean() > 0.9


def test_a_repeated_attack_goes_on_and_ends_the_same(setting: Setting, tmp_path: Path) -> None:
    detector, calibration = setting.fit("gaussian")
    first = setting.attack(detector, calibration, tmp_path)
    folders = sorted(path.name for path in tmp_path.iterdir())
    again = setting.attack(detector, calibration, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == folders
    torch.testing.assert_close(again.adaptive, first.adaptive, rtol=0, atol=0)
    assert all(torch.equal(again.correct[name], flags) for name, flags in first.correct.items())
    # another threshold is another attack
    setting.attack(detector, calibration._replace(threshold=calibration.threshold - 1), tmp_path)
    assert len(list(tmp_path.iterdir())) > len(folders)


@pytest.mark.parametrize("name", ["clean", "apgd selective", "apgd orthogonal"])
def test_a_static_attack_with_the_name_of_another_result(setting: Setting, name: str) -> None:
    images, static = (setting.test.images, setting.test.labels), {name: setting.static["pgd"]}
    adaptive = {"apgd": lambda criterion: build_attack("apgd", THREAT, criterion)}
    with pytest.raises(TrlError, match=f"a static attack is called '{name}'"):
        attack_guarded(setting.model, Pixels(), CALIBRATION, *images, static, adaptive, THREAT)


@pytest.mark.parametrize("told", [True, False])
def test_a_detector_of_yours_needs_a_key_for_a_state(setting: Setting, tmp_path: Path, told: bool) -> None:
    """Under a key, the strategies have states of their own, whether or not the attacks tell their criterion."""
    detector, images = Pixels(), (setting.test.images[:10], setting.test.labels[:10])
    calibration = fit_calibrated(setting.model, detector, setting.train, setting.validation, 0.1)

    def make(criterion: Criterion) -> Attack:
        known = build_attack("apgd", THREAT, criterion, steps=2)
        return known if told else lambda model, x, y: known(model, x, y)

    adaptive = {"apgd": make}

    def attack(state: Path | None, key: str | None = None) -> Guarded:
        given = (detector, calibration, *images, {"pgd": setting.static["pgd"][:10]}, adaptive, THREAT)
        return attack_guarded(setting.model, *given, state=state, key=key)

    with pytest.raises(TrlError, match=r"needs a key .* is your own code or cannot be tracked"):
        attack(tmp_path)
    torch.testing.assert_close(attack(tmp_path, "1").adaptive, attack(None).adaptive, rtol=0, atol=0)


class Pixels(Detector):
    def _learn(self, features: Tensor, labels: Tensor) -> None: ...

    def _score(self, features: Tensor) -> Tensor:
        return features.sum(1)


class Spy(Detector):
    """Remembers what it was given."""

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        self.learnt_from = features.clone(), labels.clone()

    def _score(self, features: Tensor) -> Tensor:
        self.scored = features.clone()
        return features.sum(1)


def test_a_detector_learns_from_natural_training_images_alone(setting: Setting) -> None:
    spy = Spy()
    calibration = fit_calibrated(setting.model, spy, setting.train, setting.validation, 0.05)
    train, _ = embed(setting.model, setting.train.images)
    validation, _ = embed(setting.model, setting.validation.images)
    torch.testing.assert_close(spy.learnt_from, (train.double(), setting.train.labels), rtol=0, atol=0)
    assert torch.equal(spy.scored, validation.double())
    scores = validation.double().sum(1)
    assert (scores > calibration.threshold).float().mean() <= 0.05
    # an attack changes neither what it knows nor its threshold
    setting.attack(spy, calibration)
    assert torch.equal(spy.learnt_from[0], train.double())


def test_too_few_validation_images(setting: Setting) -> None:
    few = ImageSet(setting.validation.images[:50], setting.validation.labels[:50])
    with pytest.raises(
        TrlError, match=r"50 natural images are too few for a false-alarm rate of 0\.01: give at least 99"
    ):
        fit_calibrated(setting.model, build_detector("energy"), setting.train, few, 0.01)


def test_the_worst_of_several_answers() -> None:
    first = Answers(torch.tensor([5.0, 5.0, 5.0]), torch.tensor([False, False, True]))
    second = Answers(torch.tensor([1.0, 7.0, 6.0]), torch.tensor([False, True, True]))
    scores, wrong = worst([first, second])
    assert scores.tolist() == [5, 7, 5]
    assert wrong.tolist() == [False, True, True]


class Pixel(nn.Module):
    """Class 1 where the first pixel exceeds 0.5; the second pixel is for the detector."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.stack([torch.zeros_like(x[:, 0]), 4 * x[:, 0] - 2], 1)


class Second(Detector):
    """The logit of class 1: what fools the classifier raises the alarm."""

    reads = "logits"

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        pass

    def _score(self, features: Tensor) -> Tensor:
        return features[:, 1]


def pixels(*values: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(values).view(-1, 1, 1, 1), torch.zeros(len(values), dtype=torch.int64)


def guard(threshold: float, epsilon: float, *values: float) -> Guarded:
    """Images of one pixel under FGSM, and under PGD that knows the detector."""
    x, y = pixels(*values)
    detector = Second().fit(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    threat = Linf(epsilon)
    static = {"fgsm": (x + epsilon).clamp(0, 1)}
    adaptive = {"pgd": partial(build_attack, "pgd", threat, steps=40, restarts=3)}
    made = {name: lambda criterion, make=make: make(criterion=criterion) for name, make in adaptive.items()}
    calibration = CALIBRATION._replace(threshold=threshold)
    return attack_guarded(Pixel(), detector, calibration, x, y, static, made, threat)


def test_a_detector_that_an_attacker_only_fools_by_knowing_it() -> None:
    """Logit 4·x - 2: class 1 above 0.5, an alarm above 0.6. A full step of 0.3 from 0.4 lands at 0.7: detected."""
    found = guard(0.4, 0.3, 0.4, 0.1, 0.25, 0.55)
    assert found.natural.wrong.tolist() == [False, False, False, True]
    assert found.correct["clean"].tolist() == [True, True, True, False]
    assert found.correct["fgsm"].tolist() == [True, True, False, False]  # 0.55 is accepted, 0.4 lies out of reach
    assert found.correct["pgd selective"].tolist() == [False, True, False, False]
    assert found.adaptive.wrong.tolist() == [True, False, True, True]
    # the lowest score of class 1 is just above 0, the logit of its boundary
    assert (found.adaptive.scores[[0, 2, 3]] > 0).all()
    assert found.adaptive.scores[0] < 0.2 < found.static["fgsm"].scores[0]


def test_a_natural_image_that_is_rejected_is_lost() -> None:
    found = guard(-1.5, 0.05, 0.1, 0.2)  # logits -1.6 and -1.2
    assert found.correct["clean"].tolist() == [True, False]
    assert found.correct["pgd orthogonal"].tolist() == [True, False]


def test_no_image_is_left_to_attack() -> None:
    found = guard(-3, 0.3, 0.1, 0.2)
    assert not any(flags.any() for flags in found.correct.values())
    assert list(found.correct) == ["clean", "fgsm", "pgd selective", "pgd orthogonal"]


class Coarse(GaussianDetector):
    """Rounds the score, so that it has no gradient but zero."""

    step = 1.5  # a quarter of the natural scores' standard deviation

    def _score(self, features: Tensor) -> Tensor:
        return (super()._score(features) / self.step).round() * self.step


def black_box(criterion: Criterion) -> Attack:
    return build_attack("square", THREAT, criterion, queries=1000)


def by_gradient(criterion: Criterion) -> Attack:
    return build_attack("apgd", THREAT, criterion, steps=20)


def test_a_score_without_a_gradient_is_not_credited(setting: Setting) -> None:
    detector = Coarse()
    calibration = fit_calibrated(setting.model, detector, setting.train, setting.validation, 0.1)

    def attack(adaptive: dict[str, MakeAttack]) -> Guarded:
        images = setting.test.images, setting.test.labels
        return attack_guarded(setting.model, detector, calibration, *images, setting.static, adaptive, THREAT)

    credited = attack({"apgd": by_gradient})
    assert credited.correct["apgd orthogonal"].sum() >= 25
    assert {"zero gradient", "credit"} == {sign.name for sign in credited.signs}
    found = attack({"square": black_box, "apgd": by_gradient})
    # what uses no gradient comes last, and once
    assert list(found.correct) == ["clean", "pgd", "apgd selective", "apgd orthogonal", "square selective"]
    assert found.correct["square selective"].sum() <= 15
    assert {"zero gradient", "black box"} == {sign.name for sign in found.signs}


def test_what_uses_no_gradient_evades_once(setting: Setting) -> None:
    detector, calls = Pixels().fit(torch.zeros(2, 32), torch.zeros(2, dtype=torch.int64)), []

    @gradient_free
    def natural(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    def make(criterion: Criterion) -> Attack:
        calls.append(criterion)
        return natural

    evade(setting.model, detector, torch.zeros(3), setting.test.images, setting.test.labels, make, THREAT)
    assert len(calls) == 1


def test_evading_stays_in_the_threat(setting: Setting) -> None:
    seen: list[Tensor] = []

    def make(criterion: Criterion):
        attack = build_attack("apgd", THREAT, criterion, steps=5)

        def spied(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            seen.append(attack(model, x, y) - x)
            return x + seen[-1]

        return spied

    detector, _ = setting.fit("energy")
    model: Classifier = setting.model
    evade(model, detector, torch.zeros(3), setting.test.images, setting.test.labels, make, THREAT)
    assert len(seen) == 2  # a strategy each
    assert max(float(change.abs().max()) for change in seen) <= 0.14 + 1e-6


def test_without_attacks_on_the_detector_nothing_is_found(setting: Setting) -> None:
    detector, calibration = setting.fit("max_logit")
    images = setting.test.images, setting.test.labels
    with pytest.raises(TrlError, match="no attacks that know the detector"):
        attack_guarded(setting.model, detector, calibration, *images, setting.static, {}, THREAT)
