"""The triplet loss on the angular distance, and its norm term."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import relu

from trl.metric.distances import angular_distance


@dataclass(frozen=True)
class TripletTerms:
    """The loss (scalar, mean over the found triplets) and what to watch while it is minimised."""

    loss: Tensor
    active: Tensor  # fraction of the triplets that violate the margin
    positive_distance: Tensor  # mean D(anchor, positive)
    negative_distance: Tensor  # mean D(anchor, negative)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [n] where `mask` [n] holds; 0, with a gradient of 0, where it holds nowhere."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, found: Tensor, margin: float) -> TripletTerms:
    """[D(a, p) - D(a, n) + margin]₊ with D the angular distance (TLA, equation 3), averaged over the found triplets.

    Embeddings [n,d] each, `found` bool [n] (see `trl.metric.mining`), `margin` ≥ 0.
    """
    to_positive, to_negative = angular_distance(anchor, positive), angular_distance(anchor, negative)
    hinge = relu(to_positive - to_negative + margin)
    return TripletTerms(
        loss=masked_mean(hinge, found),
        active=masked_mean((hinge > 0).to(hinge.dtype), found).detach(),
        positive_distance=masked_mean(to_positive, found).detach(),
        negative_distance=masked_mean(to_negative, found).detach(),
    )


def norm_penalty(
    anchor: Tensor, positive: Tensor, negative: Tensor, found: Tensor, form: Literal["l2", "squared_mean"]
) -> Tensor:
    """L_norm, scalar. `l2`: ‖a‖₂ + ‖p‖₂ + ‖n‖₂ (TLA, equation 4); `squared_mean`: mean square (released code)."""
    embeddings = (anchor, positive, negative)
    if form == "l2":
        sizes = sum((e.norm(dim=-1) for e in embeddings), start=anchor.new_zeros(len(anchor)))
    else:
        sizes = sum((e.square().mean(-1) for e in embeddings), start=anchor.new_zeros(len(anchor)))
    return masked_mean(sizes, found)
