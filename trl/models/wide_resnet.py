"""Wide ResNets (Zagoruyko & Komodakis, 2016) with leaky ReLU, as in Madry et al. 2018 and the TLA paper."""

import re

from trl.common.errors import TrlError
from trl.common.numbers import Fraction
from trl.models.base import Classifier, Mean, Shape, Std
from trl.models.preact_resnet import basic_block, conv, preactivation


def wide_resnet(
    classes: int, shape: Shape, name: str, *, leak: Fraction = 0.1, mean: Mean = (), std: Std = ()
) -> Classifier:
    """`wrn_<depth>_<k>`: three groups of (depth - 4) / 6 basic blocks, 16k, 32k and 64k wide; 64k-d embedding.

    `leak` is the slope of the activation below zero; 0 gives the ReLU of the original Wide ResNet.
    TrlError for any other name, or for a depth that is not 6n + 4.
    """
    match = re.fullmatch(r"wrn_([1-9]\d*)_([1-9]\d*)", name)
    depth, k = (int(match[1]), int(match[2])) if match else (0, 0)
    if depth < 10 or depth % 6 != 4:
        raise TrlError(
            f"no model {name!r}: wide ResNets are called wrn_<depth>_<widen factor>, with a depth of 6n + 4 "
            "(10, 16, 22, 28, 34, …) and a factor of at least 1, such as wrn_34_10"
        )
    blocks = (depth - 4) // 6
    groups = [(16 * k, blocks, 1), (32 * k, blocks, 2), (64 * k, blocks, 2)]
    body = preactivation(conv(shape[0], 16, 3), basic_block, groups, leak)
    return Classifier(body, 64 * k, classes, shape, mean, std)
