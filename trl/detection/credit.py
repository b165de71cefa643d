"""Signs that a detector is credited with robustness that only the attacks on it may lack.

As in `masking`, a sign is a reason to look, no proof. That detectors fall once the attack fits them is the lesson of
Carlini & Wagner 2017 (arXiv 1705.07263) and Tramèr et al. 2020 (arXiv 2002.08347).
"""

import torch
from torch import Tensor, nn

from trl.attacks.base import ascent
from trl.attacks.criterion import Scored
from trl.common.images import as_input
from trl.detectors.base import Detector
from trl.evaluation.intervals import accuracy
from trl.evaluation.masking import subsample_rows
from trl.evaluation.signs import Sign
from trl.nn.inference import device_of, full_precision, kept_generators
from trl.nn.modes import frozen

CREDIT = 0.05  # accuracy that rejection may add to the plain worst case before it is worth a look


def check_score(model: nn.Module, detector: Detector, x: Tensor) -> list[Sign]:
    """Has the detector's score a gradient at the images? At most 128 of them; one forward and one backward.

    `x`: uint8 or float in [0, 1], [n,…]. Eval mode, fp32; the model and the random generators stay as they were.
    """
    device = device_of(model)
    images = as_input(x[subsample_rows(x)], device)
    with frozen(model), full_precision(device), kept_generators(device):
        labels = torch.zeros(len(images), dtype=torch.int64, device=device)  # the score does not depend on them
        view = Scored(model, (detector,))
        gradient = ascent(view, images, labels, lambda outputs, y: outputs[:, -1], 0).gradient  # 0 where it is NaN
    largest = gradient.flatten(1).abs().amax(1)
    blind = largest == 0
    if not blind.any():
        return []
    share = f"{float(blind.float().mean()):.0%}"
    return [
        Sign(
            "zero gradient",
            f"the gradient of the detector's score is exactly zero or not finite for {share} of the images. An attack "
            "that follows it cannot lower the score, which is not robustness; attack with Square, and give what has no "
            "gradient (rounding, thresholds, counts) something smooth in its place (BPDA).",
        )
    ]


def check_credit(rejecting: Tensor, plain: Tensor) -> list[Sign]:
    """Is rejection credited far above the plain worst case? Bool [n] each, n ≥ 1, of the same images.

    `rejecting`: they withstand all attacks on classifier and detector; `plain`: they are classified correctly clean and
    in the worst case, whatever a detector says. A sign where the first are more by over 5 points, and so many that the
    95 % intervals lie apart: less is what a detector that works may add, or the luck of few images.
    """
    found, alone = accuracy(rejecting), accuracy(plain)
    credit = found["accuracy"] - alone["accuracy"]
    if credit <= CREDIT or found["low"] <= alone["high"]:
        return []
    return [
        Sign(
            "credit",
            f"with rejection {found['accuracy']:.1%} of {found['n']} images withstand all attacks, without it "
            f"{alone['accuracy']:.1%}: {100 * credit:.1f} points are credited to the detector, and may be what the "
            "attacks that know it are too weak to take. Give them more steps and restarts, give Square more queries, "
            "and adapt one to the detector before you believe these points.",
        )
    ]
