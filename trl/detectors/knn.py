"""Deep nearest neighbours (Sun et al., ICML 2022, arXiv 2204.06507)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trl.common.numbers import Count
from trl.detectors.base import Detector
from trl.detectors.neighbours import nearest


class NeighbourDetector(Detector):
    """Score = distance in [0, 2] to the k-th nearest natural embedding, all normalised to unit length (0 stays 0).

    `neighbours` is k, capped at the number of natural embeddings N. All of them are stored: N · d · 8 bytes.
    `layer`: see `Detector`.
    """

    natural: Tensor

    def __init__(self, *, neighbours: Count = 50, layer: str | None = None) -> None:
        super().__init__(layer)
        self.neighbours = neighbours
        self.learns = {"natural": "n d"}

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        self._keep(natural=normalize(features))

    def _score(self, features: Tensor) -> Tensor:
        directions = normalize(features)
        furthest = nearest(directions, self.natural, min(self.neighbours, len(self.natural)))[:, -1]
        return torch.linalg.vector_norm(directions - self.natural[furthest], dim=1)  # its gradient at 0 is 0
