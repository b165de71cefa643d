"""All detectors by name: to add one, write a file and add a line here."""

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
