"""Choice of positives and negatives. Miners return indices, and a mask of the anchors that have a partner."""

import torch
from torch import Tensor


def _choose(score: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, the first index of the highest score among the allowed columns; rows without any are masked out."""
    if score.shape[1] == 0:
        return score.new_zeros(len(score), dtype=torch.long), allowed.any(1)
    return score.masked_fill(~allowed, -torch.inf).argmax(1), allowed.any(1)


def hardest_negative(similarity: Tensor, labels: Tensor, pool_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The pool's most similar image of another class (TLA, section 3.3; signed cosine, as in the released code).

    `similarity` [n,m] of anchors and pool, `labels` [n], `pool_labels` [m] → (index [n] into the pool, found bool [n]).
    A pool label of -1 marks an empty place. Ties go to the lowest index; where the pool holds only the anchor's class,
    `found` is False and the index is 0.
    """
    return _choose(similarity, (labels[:, None] != pool_labels[None, :]) & (pool_labels >= 0))


def random_negative(labels: Tensor, pool_labels: Tensor) -> tuple[Tensor, Tensor]:
    """A uniformly random pool image of another class (variant TLA-RN); shapes as in `hardest_negative`."""
    lottery = torch.rand(len(labels), len(pool_labels), device=labels.device)
    return _choose(lottery, labels[:, None] != pool_labels[None, :])
