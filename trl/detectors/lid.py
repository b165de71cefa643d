"""Local intrinsic dimensionality (Ma et al., ICLR 2018, arXiv 1801.02613), learnt from natural images only."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trl.common.errors import TrlError
from trl.detectors.base import Detector
from trl.detectors.neighbours import nearest

NEAREST = 1e-10  # least distance relative to the k-th, to avoid log 0 for an image that is among the natural ones
FLATTEST = 1e-9  # least mean of log(r_k / r_i): equal distances would give an infinite dimension


class DimensionDetector(Detector):
    """Score = -(1/k Σ_i log(r_i / r_k))⁻¹ (equation 4), r_1 ≤ … ≤ r_k the distances to the nearest natural embeddings.

    The paper searches neighbours in a minibatch, and weights the scores of all layers by a logistic regression trained
    on adversarial images; here, neighbours come from all natural embeddings, and a single layer is used.
    `neighbours` is k, capped at the number of natural embeddings N. All of them are stored: N · d · 8 bytes.
    `layer`: see `Detector`.
    """

    natural: Tensor

    def __init__(self, *, neighbours: Annotated[int, Field(ge=2)] = 20, layer: str | None = None) -> None:
        super().__init__(layer)
        self.neighbours = neighbours
        self.learns = {"natural": "n d"}

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """TrlError for a single row."""
        if len(features) < 2:
            raise TrlError("one natural embedding is too few to estimate dimensionality: give at least two")
        self._keep(natural=features)

    def _score(self, features: Tensor) -> Tensor:
        chosen = self.natural[nearest(features, self.natural, min(self.neighbours, len(self.natural)))]
        distances = torch.linalg.vector_norm(features[:, None] - chosen, dim=2)
        furthest = distances.amax(1, keepdim=True)
        ratios = distances / furthest.clamp_min(1e-100)  # 0 if all neighbours equal the embedding: it is natural
        return 1 / -ratios.clamp_min(NEAREST).log().mean(1).clamp_max(-FLATTEST)
