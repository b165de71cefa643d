"""Choose the threshold above which an image counts as adversarial, on natural validation images alone."""

import math
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.numbers import Positive, Real


class Calibration(NamedTuple):
    """An image counts as adversarial if its score is above `threshold`.

    `false_alarms`: the largest average fraction of natural images above it, in (0, 1). `scale`: the standard deviation
    of the natural scores, the unit in which attacks measure the distance from the threshold.
    """

    false_alarms: Annotated[Real, Field(gt=0, lt=1)]
    threshold: Real
    scale: Positive


def calibrate(natural: Tensor, false_alarms: float) -> Calibration:
    """The ⌈(n + 1)(1 - false_alarms)⌉-th smallest of the natural validation scores [n]: split conformal prediction.

    A new natural image from the same distribution scores above it with probability at most `false_alarms`, even for
    small n (Vovk et al. 2005; Angelopoulos & Bates 2021, arXiv 2107.07511, section 1).
    TrlError if a score is not finite, or if there are fewer than the required ⌈1/false_alarms⌉ - 1.
    """
    if natural.ndim != 1 or not natural.isfinite().all():
        raise TrlError(f"natural scores {tuple(natural.shape)} must be [n] and finite: check the embeddings")
    if not 0 < false_alarms < 1:
        raise TrlError(f"false_alarms must be between 0 and 1, not {false_alarms}")
    rank = math.ceil((len(natural) + 1) * (1 - false_alarms) - 1e-9)  # rounding must not raise it by one
    if not 1 <= rank <= len(natural):
        raise TrlError(
            f"{len(natural)} natural images are too few for a false-alarm rate of {false_alarms}: "
            f"give at least {max(1, math.ceil(1 / false_alarms - 1e-9) - 1)}"
        )
    scores = natural.detach().cpu().double().sort().values
    return Calibration(false_alarms, float(scores[rank - 1]), float(scores.std(correction=0)) or 1.0)
