"""Adversarial images as 8 bits keep them: what is stored as PNG, or shown on a screen, is rounded to 256 levels."""

from torch import Tensor

from trl.common.errors import TrlError
from trl.threat import Threat

LEVELS = 255  # of a pixel, above 0
ROUNDING = 1e-3  # of a level: how far from one a float may be that stands for it


def is_eight_bit(x: Tensor) -> bool:
    """Whether every value of images in [0, 1] is one of 256 levels, k/255, but for rounding."""
    scaled = x.double() * LEVELS
    return bool(((scaled - scaled.round()).abs() <= ROUNDING).all())


def check_eight_bit(x: Tensor) -> None:
    """TrlError unless images in [0, 1] are of 8 bits."""
    if not is_eight_bit(x):
        raise TrlError("the images are not of 8 bits, k/255 in every value: give uint8, or do without eight_bit")


def to_eight_bit(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Adversarial images [n,…] of the threat's ball around x, rounded to 256 levels and still in it; float like x_adv.

    To the nearest level, or, for an image that this would carry out of the ball, towards x in every value. x itself is
    of 8 bits.
    """
    levels, natural = x_adv.double() * LEVELS, (x.double() * LEVELS).round()
    nearest = (levels.round() / LEVELS).to(x_adv.dtype)
    inwards = ((natural + (levels - natural).trunc()) / LEVELS).to(x_adv.dtype)
    leaves = (threat.excess(nearest, x) > 0).view(-1, *[1] * (x.ndim - 1))
    return inwards.where(leaves, nearest)
