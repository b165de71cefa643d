"""What the stages proxy and mix write: proxy.json and arc.json; mix.json."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, NonNegativeFloat, model_validator

from trl.registry import refuse
from trl.results.base import Document, Share


class Distances(BaseModel):
    """ℓ2 distances to the nearest training image, of images in [0, 1]: their 5 %, 50 % and 95 % quantiles."""

    low: NonNegativeFloat
    median: NonNegativeFloat
    high: NonNegativeFloat


class ProxyResult(Document):
    """proxy.json: which proxy drew how many images, fitted to which data, and how near they are to these.

    `data` is the SHA-256 of the prepared data, `samples` a hash of the images with their labels; `fitted_to`: how many
    training images; `drawn`: how many images, of which `kept` were selected; `labels`: how many of each class.
    `nearest` of the samples and of `held_out` images; `copies`: the share of samples that are nearer to a training
    image than 95 % of the held-out images are, where 5 % would be usual; `warnings` says so of a proxy that memorises.
    """

    file, stage = "proxy.json", "proxy"

    proxy: str
    options: dict[str, Any]
    seed: int
    data: str
    fitted_to: int
    drawn: int
    kept: int
    samples: str
    labels: dict[str, int]
    nearest: Distances
    held_out: Distances
    copies: Share
    warnings: list[str]


class ArcResult(Document):
    """arc.json: the robust discrimination curve, `accuracy` by epsilon, and the area of max(accuracy - 1/2, 0).

    It is that of all images that were drawn, before any were selected.
    """

    file, stage = "arc.json", "proxy"

    arc: NonNegativeFloat
    norm: str
    epsilons: Annotated[list[NonNegativeFloat], Field(min_length=2)]
    accuracy: list[Share]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len(self.epsilons) != len(self.accuracy):
            raise refuse(f"{len(self.accuracy)} values for {len(self.epsilons)} epsilons", ("accuracy",))
        return self


class MixResult(Document):
    """mix.json: the proxy on which a method trains, and the hash of its samples (`ProxyResult.samples`)."""

    file, stage = "mix.json", "mix"

    proxy: str
    samples: str
