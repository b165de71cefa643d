"""What the stage certify writes: certify.json and certified.csv."""

from pydantic import NonNegativeFloat

from trl.results.base import Accuracy, Document, Row, Share


class CertifyResult(Document):
    """certify.json: settings of randomized smoothing, and its figures at radius 0.

    `sigma`: of the noise; `selection` and `samples`: draws per image to select a class and to certify it; `alpha`: the
    probability per image of a wrong certificate. `accuracy`: right and not abstaining; `abstained`: share of images
    without a certified class; `mean_radius`: ℓ2, over all images, 0 for one that abstains or is wrong.
    """

    file, stage = "certify.json", "certify"

    sigma: float
    selection: int
    samples: int
    alpha: float
    accuracy: Accuracy
    abstained: Share
    mean_radius: NonNegativeFloat

    @property
    def images(self) -> int:
        """How many images were certified."""
        return self.accuracy.n


class CertifiedPoint(Row):
    """A row of certified.csv: the share of images that are right and certified up to an ℓ2 `radius`."""

    file, stage = "certified.csv", "certify"

    radius: NonNegativeFloat
    accuracy: Share
    low: Share
    high: Share
