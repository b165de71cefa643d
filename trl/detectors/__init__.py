"""Detectors of adversarial images from their embeddings, one file each: fit on natural training data, then score."""

from trl.registry import Registry

DETECTORS = Registry("detector", {"gaussian": "trl.detectors.gaussian:GaussianDetector"})
