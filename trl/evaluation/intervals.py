"""Accuracy with a confidence interval for a finite number of test images."""

from typing import TypedDict

from torch import Tensor


class Accuracy(TypedDict):
    """Fraction of correct samples in [0, 1], its 95 % interval, and the number of samples."""

    accuracy: float
    low: float
    high: float
    n: int


def accuracy(correct: Tensor) -> Accuracy:
    """Accuracy of a bool tensor [n], n ≥ 1, with the 95 % Wilson score interval (Wilson 1927)."""
    from scipy.stats import binomtest

    right, n = int(correct.sum()), len(correct)
    interval = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Accuracy(accuracy=right / n, low=float(interval.low), high=float(interval.high), n=n)
