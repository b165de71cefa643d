"""Classifiers that map images in [0, 1] to logits, one file per architecture, each with `features(x)` and `head`."""

from trl.models.base import Classifier
from trl.models.build import build_model
from trl.models.io import load_model, save_model, weights_sha256
from trl.models.registry import MODELS

__all__ = ["MODELS", "Classifier", "build_model", "load_model", "save_model", "weights_sha256"]
