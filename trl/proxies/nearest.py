"""How near samples are to the training images: a proxy that memorises draws near copies of them."""

import torch
from torch import Tensor

from trl.common.progress import batches
from trl.data import ImageSet

BLOCK = 500  # images compared at a time
USUAL = 0.05  # the share of held-out images that count as near a training image
MANY = 0.2  # more samples than this are near one: the proxy memorises


def nearest_distances(images: Tensor, train: Tensor) -> Tensor:
    """The ℓ2 distance of each image to the nearest training image: float32 [n], of uint8 images read in [0, 1]."""
    found = torch.full((len(images),), torch.inf)
    for part in batches(len(train), 20 * BLOCK):
        others = train[part].flatten(1).float() / 255
        for rows in batches(len(images), BLOCK):
            distances = torch.cdist(images[rows].flatten(1).float() / 255, others).amin(1)
            found[rows] = torch.minimum(found[rows], distances)
    return found


def share_of_copies(samples: Tensor, held_out: Tensor) -> float:
    """The share of `samples` whose distances to training images are below the 5 % quantile of those of `held_out`."""
    return float((samples < held_out.quantile(USUAL)).float().mean())


def memorised(copies: float) -> str | None:
    """What to say of a proxy of whose samples the share `copies` are near a training image; None: nothing."""
    if copies <= MANY:
        return None
    return (
        f"{copies:.0%} of the samples are nearer to a training image than 95 % of the held-out images are: "
        "the proxy memorises"
    )


def some(images: ImageSet, count: int) -> Tensor:
    """At most `count` images, evenly spaced."""
    rows = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    return images.images[rows]
