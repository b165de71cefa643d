"""Adversarial images in 8 bits: PNG files and screens round them to 256 levels."""

from torch import Tensor

from trl.common.errors import TrlError
from trl.threat import Threat

LEVELS = 255  # highest level of an 8-bit value
ROUNDING = 1e-3  # how far a float may be from the level it stands for, in levels


def is_eight_bit(x: Tensor) -> bool:
    """Whether every value of images in [0, 1] is one of the 256 levels k/255, up to rounding."""
    scaled = x.double() * LEVELS
    return bool(((scaled - scaled.round()).abs() <= ROUNDING).all())


def check_eight_bit(x: Tensor) -> None:
    """TrlError unless images in [0, 1] are 8-bit images."""
    if not is_eight_bit(x):
        raise TrlError("the images are not 8-bit (every value k/255): give uint8, or turn eight_bit off")


def to_eight_bit(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Round adversarial images [n,…] to 256 levels within the threat's ball around x; float like x_adv.

    Rounds to the nearest level; an image that would leave the ball is rounded towards x in every value instead. x must
    be 8-bit itself.
    """
    levels, natural = x_adv.double() * LEVELS, (x.double() * LEVELS).round()
    nearest = (levels.round() / LEVELS).to(x_adv.dtype)
    inwards = ((natural + (levels - natural).trunc()) / LEVELS).to(x_adv.dtype)
    leaves = (threat.excess(nearest, x) > 0).view(-1, *[1] * (x.ndim - 1))
    return inwards.where(leaves, nearest)
