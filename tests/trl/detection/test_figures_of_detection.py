import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from trl.common.errors import TrlError
from trl.detection.figures import by_subset, detection_figures, roc_points


def detection_auc(natural: torch.Tensor, adversarial: torch.Tensor, succeeded: torch.Tensor) -> dict:
    """The area under the curve, by subset."""

    def area(natural: torch.Tensor, chosen: torch.Tensor) -> float:
        return detection_figures(natural, chosen, resamples=1)["auc"].value

    return by_subset(area, natural, adversarial, succeeded)


scores = arrays("float64", st.integers(1, 30), elements=st.integers(-5, 5).map(float)).map(torch.from_numpy)


def test_areas_by_hand_with_ties() -> None:
    natural, adversarial = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 4.0, 0.0])
    succeeded = torch.tensor([True, False, True, False])
    # pairs won (ties half): 2 → 1.5, 3 → 2.5, 4 → 3, 0 → 0
    areas = detection_auc(natural, adversarial, succeeded)
    assert areas == pytest.approx({"all": 7 / 12, "successful": 4.5 / 6, "failed": 2.5 / 6})


def test_an_empty_subset_has_no_area() -> None:
    natural, adversarial = torch.tensor([0.0, 1.0]), torch.tensor([2.0])
    assert detection_auc(natural, adversarial, torch.tensor([True])) == {"all": 1, "successful": 1, "failed": None}
    assert detection_auc(natural, adversarial, torch.tensor([False])) == {"all": 1, "successful": None, "failed": 1}


@settings(max_examples=40, deadline=None)
@given(natural=scores, adversarial=scores)
def test_opposite_scores_have_the_opposite_area(natural: torch.Tensor, adversarial: torch.Tensor) -> None:
    succeeded = torch.arange(len(adversarial)) % 2 == 0
    areas = detection_auc(natural, adversarial, succeeded)
    opposite = detection_auc(-natural, -adversarial, succeeded)
    for subset, area in areas.items():
        if area is None:
            assert opposite[subset] is None
        else:
            assert area + opposite[subset] == pytest.approx(1)


def test_clean_against_clean_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    natural, other = torch.randn(2, 4000, generator=generator)
    areas = detection_auc(natural, other, torch.arange(4000) < 2000)
    assert all(area == pytest.approx(0.5, abs=0.03) for area in areas.values())
    assert detection_auc(natural, other + 1, torch.arange(4000) < 2000)["all"] == pytest.approx(0.7602, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(natural=scores, adversarial=scores, max_points=st.integers(2, 20))
def test_roc_points_lie_on_the_curve(natural: torch.Tensor, adversarial: torch.Tensor, max_points: int) -> None:
    points = roc_points(natural, adversarial, max_points)
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)
    assert len(points) <= max_points
    assert points == sorted(points)
    thresholds = [*torch.cat([natural, adversarial]), float("inf")]
    rates = {(float((natural >= t).double().mean()), float((adversarial >= t).double().mean())) for t in thresholds}
    assert all(any(point == pytest.approx(rate) for rate in rates) for point in points)


def test_roc_points_are_spread_and_keep_the_area() -> None:
    generator = torch.Generator().manual_seed(0)
    natural, adversarial = torch.randn(3000, generator=generator), 1 + torch.randn(3000, generator=generator)
    points = torch.tensor(roc_points(natural, adversarial))
    assert 150 < len(points) <= 200
    area = torch.trapezoid(points[:, 1], points[:, 0])
    exact = detection_auc(natural, adversarial, torch.ones(3000, dtype=torch.bool))["all"]
    assert float(area) == pytest.approx(exact, abs=1e-3)


def test_scores_that_cannot_be_compared() -> None:
    good, flags = torch.tensor([0.0, 1.0]), torch.tensor([True, False])
    for natural, adversarial, succeeded, message in (
        (good, torch.tensor([0.0, torch.nan]), flags, "NaN"),
        (torch.tensor([torch.inf]), good, flags, "infinite"),
        (good[:0], good, flags, "at least one"),
        (good, good[:0], flags[:0], "at least one"),
        (good, good, flags[:1], "one flag per"),
        (good, good, flags.long(), "must be bool"),
    ):
        with pytest.raises(TrlError, match=message):
            detection_auc(natural, adversarial, succeeded)


@settings(max_examples=60, deadline=None)
@given(natural=scores, adversarial=scores)
def test_figures_are_scikit_learns_and_their_definitions(natural: torch.Tensor, adversarial: torch.Tensor) -> None:
    found = {name: figure.value for name, figure in detection_figures(natural, adversarial, resamples=1).items()}
    truth, values = [0] * len(natural) + [1] * len(adversarial), torch.cat([natural, adversarial])
    thresholds = [*values, float("inf")]
    rates = [((natural >= t).double().mean(), (adversarial >= t).double().mean()) for t in thresholds]
    assert found == pytest.approx(
        {
            "auc": roc_auc_score(truth, values),
            "aupr": average_precision_score(truth, values),
            "fpr95": float(min(alarms for alarms, hits in rates if hits >= 0.95)),
            "tpr01": float(max(hits for alarms, hits in rates if alarms <= 0.01)),
            "tpr05": float(max(hits for alarms, hits in rates if alarms <= 0.05)),
        }
    )


def test_intervals_cover_the_truth() -> None:
    """Of 20 samples from two normal distributions a unit apart, the 95 % interval misses few."""
    covered = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        natural, adversarial = torch.randn(2, 150, generator=generator)
        auc = detection_figures(natural, adversarial + 1, resamples=100)["auc"]
        assert 0 <= auc.low < auc.value < auc.high <= 1
        covered += auc.low < 0.7602 < auc.high
    assert 16 <= covered <= 20


def test_intervals_depend_on_the_seed_alone() -> None:
    natural, adversarial = torch.randn(2, 50)
    first, same, other = (detection_figures(natural, adversarial, 20, seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other
