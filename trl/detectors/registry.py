"""The detectors that can be named: a new one is a file and a line here."""

from trl.registry import Registry

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
