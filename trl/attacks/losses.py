"""What attacks maximise: functions (logits [n,k], y [n]) → [n]; higher = closer to, or deeper into, a mistake."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import kl_div

from trl.common.errors import TrlError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y], per sample."""
    return torch_cross_entropy(logits, y, reduction="none")


def cw_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max over j ≠ y of z_j - z_y (Carlini & Wagner 2017, f₆ without clipping at -kappa); positive = misclassified."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max over j ≠ y of z_j - z_y) / (z_π1 - z_π3) (Croce & Hein 2020, equation 6).

    With two classes there is no third logit, and substituting the second makes the ratio constant: the margin is used.
    """
    if logits.shape[1] < 3:
        return cw_margin(logits, y)
    top = logits.topk(3, dim=1).values
    return cw_margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def divergence_from(clean: Tensor) -> Loss:
    """The loss KL(softmax(clean) ‖ softmax(logits)) per sample, of TRADES; `clean` [n,k] are the clean images' logits.

    It ignores y. Its gradient at the clean images is zero.
    """
    target = clean.log_softmax(1)
    return lambda logits, y: kl_div(logits.log_softmax(1), target, reduction="none", log_target=True).sum(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "cw": cw_margin, "dlr": dlr}


def get_loss(name: str) -> Loss:
    """The loss called `name`; TrlError for an unknown name."""
    if name not in LOSSES:
        raise TrlError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    return LOSSES[name]
