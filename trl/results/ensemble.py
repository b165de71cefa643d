"""What the stage ensemble writes: ensemble.json."""

from pydantic import BaseModel

from trl.results.base import Document, Share
from trl.results.detect import Figure


class Difference(BaseModel):
    """A difference of two shares of the same images, with its 95 % interval (paired)."""

    value: float
    low: float
    high: float


class Fooled(BaseModel):
    """Share of images that fool all models at once (`all`), and each of them."""

    all: Figure
    each: dict[str, Figure]


class Together(BaseModel):
    """An attack on all models of one seed at once: on clean images, by min-max and by averaging.

    `weights`: the mean over the images of those that min-max ends with, by model; `gain`: the share that fools all by
    min-max less that by averaging.
    """

    n: int
    clean: Fooled
    minmax: Fooled
    average: Fooled
    weights: dict[str, Share]
    gain: Difference


class EnsembleResult(Document):
    """ensemble.json: the models of `methods` attacked together, for each seed."""

    file, stage = "ensemble.json", "ensemble"

    epsilon: float
    methods: list[str]
    seeds: dict[int, Together]
