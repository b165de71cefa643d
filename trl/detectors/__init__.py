"""Detectors of adversarial images, one file each: fit on natural training data, then score."""

from typing import Any

from trl.detectors.base import Detector
from trl.detectors.calibration import Calibration, calibrate
from trl.detectors.io import load_detector, save_detector
from trl.registry import Registry

__all__ = [
    "DETECTORS",
    "Calibration",
    "Detector",
    "build_detector",
    "calibrate",
    "load_detector",
    "save_detector",
]

DETECTORS = Registry(
    "detector",
    {
        "energy": "trl.detectors.energy:EnergyDetector",
        "gaussian": "trl.detectors.gaussian:GaussianDetector",
        "gmm": "trl.detectors.gmm:GaussianMixtureDetector",
        "knn": "trl.detectors.knn:NeighbourDetector",
        "lid": "trl.detectors.lid:DimensionDetector",
        "mahalanobis": "trl.detectors.mahalanobis:MahalanobisDetector",
        "max_logit": "trl.detectors.max_logit:MaxLogitDetector",
    },
)


def build_detector(name: str, **options: Any) -> Detector:
    """The detector called `name`; TrlError for an unknown name or for options that it does not have."""
    checked = DETECTORS.check(name, options)
    detector: Detector = DETECTORS.get(name)(**checked)
    detector.config = {"name": name, "options": checked}
    return detector
