"""A detector by its name and options, as params.yaml gives it."""

from typing import Any

from trl.detectors.base import Detector
from trl.detectors.registry import DETECTORS


def build_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`; TrlError for an unknown name or for options that it does not have."""
    checked = DETECTORS.check(name, options)
    detector: Detector = DETECTORS.get(name)(**checked)
    detector.config = {"name": name, "options": checked}
    return detector
