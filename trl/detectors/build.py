"""Build a detector from a name and options, as in params.yaml."""

from typing import Any

from trl.detectors.base import Detector
from trl.detectors.registry import DETECTORS


def build_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`; TrlError for an unknown name or invalid options."""
    checked = DETECTORS.check(name, options)
    detector: Detector = DETECTORS.get(name)(**checked)
    detector.config = {"name": name, "options": checked}
    return detector
