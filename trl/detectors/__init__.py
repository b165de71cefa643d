"""Detectors of adversarial images from their embeddings, one file each: fit on natural training data, then score."""

from typing import Any, Protocol, Self

from torch import Tensor

from trl.registry import Registry

DETECTORS = Registry("detector", {"gaussian": "trl.detectors.gaussian:GaussianDetector"})


class Detector(Protocol):
    """What every detector can do; it never sees an adversarial image before it scores one."""

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Learn from natural training embeddings [n,d] and their labels [n]."""

    def score(self, features: Tensor) -> Tensor:
        """Scores [n] of embeddings [n,d]: higher = more adversarial."""


def build_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`; TrlError for an unknown name or for options that it does not have."""
    detector: Detector = DETECTORS.build(name, **options)
    return detector
