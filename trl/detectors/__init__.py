"""Detectors of adversarial images, one file each: fit on natural training data, then score."""

from typing import Any

from trl.detectors.base import Detector
from trl.registry import Registry

__all__ = ["DETECTORS", "Detector", "build_detector"]

DETECTORS = Registry("detector", {"gaussian": "trl.detectors.gaussian:GaussianDetector"})


def build_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`; TrlError for an unknown name or for options that it does not have."""
    checked = DETECTORS.check(name, options)
    detector: Detector = DETECTORS.get(name)(**checked)
    detector.config = {"name": name, "options": checked}
    return detector
