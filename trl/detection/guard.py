"""A classifier with its detector and threshold, as it is put to use: images in; class, certainty and verdict out."""

from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.detectors.base import Detector
from trl.detectors.calibration import Calibration
from trl.detectors.io import load_detector
from trl.detectors.observe import embed
from trl.models import load_model, weights_sha256


class Judgement(NamedTuple):
    """Of n images, on the CPU: `classes` int64 [n], the softmax `probabilities` of those classes float64 [n] in [0, 1],
    the detector's `scores` float64 [n] (higher = more adversarial), and bool [n] whether they are called `adversarial`.
    """

    classes: Tensor
    probabilities: Tensor
    scores: Tensor
    adversarial: Tensor


class Guard:
    """Judges images by a classifier and a detector fitted to it; several threads may share one.

    An image is called adversarial if its score is above the calibration's threshold.
    """

    def __init__(self, model: nn.Module, detector: Detector, calibration: Calibration, batch_size: int = 500) -> None:
        self.model, self.detector, self.calibration, self.batch_size = model, detector, calibration, batch_size
        self._lock = Lock()  # `embed` hooks into the model and switches its mode

    @classmethod
    def load(cls, model: str | Path, detector: str | Path, device: str | torch.device = "cpu") -> "Guard":
        """From the folders of `save_model` and `save_detector`; TrlError if damaged, or not fitted to each other."""
        classifier = load_model(model, device)
        return cls(classifier, *load_detector(detector, device, weights_sha256(model)))

    def judge(self, x: Tensor) -> Judgement:
        """Judge images [n,c,h,w], uint8 or float in [0, 1], a batch at a time, in eval mode and full fp32 precision.

        TrlError for no images, images of another shape than the classifier's, and values that are not in [0, 1].
        """
        if x.ndim != 4 or len(x) == 0:
            raise TrlError(f"images are {list(x.shape)}: give [n, channels, height, width] with at least one image")
        if x.isnan().any():
            raise TrlError("images hold NaN: give values in [0, 1]")
        with self._lock:
            seen, logits = embed(self.model, x, self.batch_size, self.detector.reads)
            scores = self.detector.score(seen).cpu()
        probabilities, classes = logits.double().softmax(1).max(1)
        return Judgement(classes, probabilities, scores, scores > self.calibration.threshold)
