"""Local intrinsic dimensionality (Ma et al., ICLR 2018, arXiv 1801.02613), without adversarial images to learn from."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trl.common.errors import TrlError
from trl.detectors.base import Detector
from trl.detectors.neighbours import nearest

NEAREST = 1e-10  # least distance, relative to the k-th: an image that is a natural one has no dimension of -1 / log 0
FLATTEST = 1e-9  # least mean of log(r_k / r_i): at equal distances the dimension would be infinite


class DimensionDetector(Detector):
    """Score = -(1/k Σ_i log(r_i / r_k))⁻¹ (equation 4), r_1 ≤ … ≤ r_k the distances to the nearest natural embeddings.

    It differs from the paper: there the neighbours are sought in a minibatch and a logistic regression trained on
    adversarial images weighs the scores of all layers; here among all natural embeddings, for one layer alone.
    `neighbours` is k, or the number of natural embeddings if that is less. All of them are kept: N · d · 8 bytes.
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
            raise TrlError("one natural embedding has no dimensionality around it: give at least two")
        self._keep(natural=features)

    def _score(self, features: Tensor) -> Tensor:
        chosen = self.natural[nearest(features, self.natural, min(self.neighbours, len(self.natural)))]
        distances = torch.linalg.vector_norm(features[:, None] - chosen, dim=2)
        furthest = distances.amax(1, keepdim=True)
        ratios = distances / furthest.clamp_min(1e-100)  # 0 among equal embeddings, which are natural indeed
        return 1 / -ratios.clamp_min(NEAREST).log().mean(1).clamp_max(-FLATTEST)
