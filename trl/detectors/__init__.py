"""Detectors of adversarial images, one file each: fitted to natural training data, then used to score images."""

from trl.detectors.base import Detector
from trl.detectors.build import build_detector
from trl.detectors.calibration import Calibration, calibrate
from trl.detectors.io import load_detector, save_detector
from trl.detectors.observe import Observed, embed
from trl.detectors.registry import DETECTORS

__all__ = [
    "DETECTORS",
    "Calibration",
    "Detector",
    "Observed",
    "build_detector",
    "calibrate",
    "embed",
    "load_detector",
    "save_detector",
]
