import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl.detectors import calibrate
from trl.errors import TrlError


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(20, 300),
    rate=st.sampled_from([0.05, 0.1, 1 / 3, 0.5, 0.9]),
    seed=st.integers(0, 100),
    ties=st.booleans(),
)
def test_threshold_is_the_smallest_without_more_false_alarms(n: int, rate: float, seed: int, ties: bool) -> None:
    natural = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    natural = natural.round() if ties else natural
    threshold = calibrate(natural, rate).threshold
    allowed = [t for t in natural.tolist() if (natural > t).sum() <= rate * n + 1e-9]
    assert threshold == min(allowed)


def test_calibration_by_hand() -> None:
    calibration = calibrate(torch.arange(100.0), 0.05)
    assert calibration == (0.05, 94, pytest.approx(torch.arange(100.0).std(correction=0).item()))
    assert calibrate(torch.arange(49.0), 1 / 49).threshold == 47
    assert calibrate(torch.zeros(20), 0.1) == (0.1, 0, 1)  # no spread: a scale that can be divided by


def test_what_cannot_be_calibrated() -> None:
    for natural, rate, message in (
        (torch.randn(50), 0.01, "take 100 or more"),
        (torch.randn(0), 0.5, "take 2 or more"),
        (torch.randn(50), 1.0, "between 0 and 1"),
        (torch.randn(5, 2), 0.5, r"must be \[n\]"),
        (torch.tensor([0.0, torch.nan]), 0.5, "finite"),
    ):
        with pytest.raises(TrlError, match=message):
            calibrate(natural, rate)
