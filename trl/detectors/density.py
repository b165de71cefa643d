"""Gaussian densities by whitening: with Σ⁻¹ = W Wᵀ, (h - μ)ᵀ Σ⁻¹ (h - μ) = |(h - μ) W|², a product, not a solve."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trl.common.errors import TrlError

FLOOR = 1e-6  # times the mean variance is added to every variance, so that constant features (dead ReLUs) work
EXACT = "donot_use_mm_for_euclid_dist"


def by_class(features: Tensor, labels: Tensor, tied: bool = False) -> list[Tensor]:
    """The rows of each class, sorted by label; `tied`: one covariance will be pooled over all classes.

    TrlError if no density can be fitted: a class (tied: every class) has a single sample, or only equal ones.
    """
    groups = {k: features[labels == k] for k in sorted(set(labels.tolist()))}
    for k, rows in groups.items():
        if len(rows) < 2 and not tied:
            raise TrlError(
                f"class {k} has one sample: give at least two, or use the detector gaussian with covariance: tied"
            )
    constant = [bool((rows == rows[0]).all()) for rows in groups.values()]
    if all(constant) or (any(constant) and not tied):
        raise TrlError("the embeddings of a class are all equal, so no density can be fitted: give more varied images")
    return list(groups.values())


def whitening(covariance: Tensor) -> Tensor:
    """The upper triangular W [d,d] with W Wᵀ = Σ⁻¹, for a positive definite Σ [d,d]."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False).T.contiguous()


def squared_distances(features: Tensor, means: Tensor, whitenings: Tensor) -> Tensor:
    """Squared Mahalanobis distances [n,c] of features [n,d] to means [c,d].

    `whitenings`: W per mean [c,d,d], one W for all [1,d,d], or the diagonals of diagonal Ws [c,d].
    """
    if whitenings.ndim == 3 and len(whitenings) == 1:
        centre = means.mean(0)  # subtracted first: a large common offset would cost precision
        whitened, centres = (features - centre) @ whitenings[0], (means - centre) @ whitenings[0]
        return torch.cdist(whitened, centres, compute_mode=EXACT).square()
    found: Tensor = _SquaredDistances.apply(features, means, whitenings)
    return found


def log_density(features: Tensor, means: Tensor, whitenings: Tensor) -> Tensor:
    """log N(h; μ, Σ) [n,c], for the same arguments as `squared_distances`."""
    diagonals = whitenings if whitenings.ndim == 2 else whitenings.diagonal(dim1=1, dim2=2)
    normalisation = diagonals.log().sum(1) - features.shape[1] / 2 * math.log(2 * math.pi)
    return normalisation - squared_distances(features, means, whitenings) / 2


class _SquaredDistances(torch.autograd.Function):
    """`squared_distances` with one W per mean; backward skips zero gradients, such as all but 1 in c of a maximum."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, means: Tensor, whitenings: Tensor) -> Tensor:
        """Loops over the means, to hold [n,d] at a time."""
        ctx.save_for_backward(features, means, whitenings)
        each = zip(means, whitenings, strict=True)
        return torch.stack([_times(features - mean, whitening).square().sum(1) for mean, whitening in each], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """2 Σ⁻¹ (h - μ), for the features only."""
        features, means, whitenings = ctx.saved_tensors
        total = torch.zeros_like(features)
        for column, mean, whitening in zip(gradient.T, means, whitenings, strict=True):
            rows = column.nonzero()[:, 0]
            total[rows] += 2 * column[rows, None] * _times(_times(features[rows] - mean, whitening), whitening.t())
        return total, None, None


def _times(rows: Tensor, whitening: Tensor) -> Tensor:
    return rows * whitening if whitening.ndim == 1 else rows @ whitening
