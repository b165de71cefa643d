import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl.common.errors import TrlError
from trl.detectors import calibrate


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(20, 300),
    rate=st.sampled_from([0.05, 0.1, 1 / 3, 0.5, 0.9]),
    seed=st.integers(0, 100),
    ties=st.booleans(),
)
def test_threshold_is_the_smallest_without_more_false_alarms(n: int, rate: float, seed: int, ties: bool) -> None:
    """Among n + 1 exchangeable scores, the new one included, which counts as an alarm here."""
    natural = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    natural = natural.round() if ties else natural
    threshold = calibrate(natural, rate).threshold
    allowed = [t for t in natural.tolist() if (natural > t).sum() + 1 <= rate * (n + 1) + 1e-9]
    assert threshold == min(allowed)


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (110, 0.01), (150, 0.01), (30, 0.1), (7, 0.3)])
def test_new_images_raise_no_more_false_alarms_than_that(n: int, rate: float) -> None:
    """Of uniform scores, the share above the threshold is the threshold's distance from 1."""
    scores = torch.rand(4000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alarms = torch.tensor([1 - calibrate(row, rate).threshold for row in scores])
    assert alarms.mean() <= rate + 3 * alarms.std() / len(alarms) ** 0.5
    assert alarms.mean() >= rate - 1 / (n + 1) - 3 * alarms.std() / len(alarms) ** 0.5


def test_calibration_by_hand() -> None:
    calibration = calibrate(torch.arange(100.0), 0.05)
    assert calibration == (0.05, 95, pytest.approx(torch.arange(100.0).std(correction=0).item()))
    assert calibrate(torch.arange(49.0), 1 / 50).threshold == 48  # as few as can be
    assert calibrate(torch.arange(99.0), 0.01).threshold == 98
    assert calibrate(torch.zeros(20), 0.1) == (0.1, 0, 1)  # no spread: a scale that can be divided by


def test_what_cannot_be_calibrated() -> None:
    for natural, rate, message in (
        (torch.randn(50), 0.01, "give at least 99"),
        (torch.randn(98), 0.01, "give at least 99"),
        (torch.randn(0), 0.5, "give at least 1"),
        (torch.randn(0), 0.9, "give at least 1"),
        (torch.randn(50), 1.0, "between 0 and 1"),
        (torch.randn(5, 2), 0.5, r"must be \[n\]"),
        (torch.tensor([0.0, torch.nan]), 0.5, "finite"),
    ):
        with pytest.raises(TrlError, match=message):
            calibrate(natural, rate)
