"""What every detector of adversarial images is: fitted to natural training data alone, then a score per image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError


class Layer(NamedTuple):
    """A submodule of a classifier by its path, such as "layer4" or "body.3" (see `named_modules`)."""

    path: str


Reads = Literal["features", "logits", "layers"] | Layer
BATCH = 512  # rows scored at a time: detectors hold [rows, classes, d]


class Detector(nn.Module, ABC):
    """Scores images by what a classifier makes of them: higher = more adversarial.

    `reads` says what: the embedding, the logits, or the pooled outputs of several layers or of the one at the path
    `layer`; `observe` computes it, for any module.
    What `fit` learns are float64 buffers, so that a detector moves between devices and is stored like a model. `learns`
    gives their names and shapes, such as "k d d": a letter stands for the same size everywhere, and d for the width.
    `config` says how `build_detector` made it. The score is differentiable in what it reads: it can be attacked.
    """

    reads: Reads = "features"
    learns: Mapping[str, str] = MappingProxyType({})
    width: Tensor

    def __init__(self, layer: str | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        if layer is not None:
            self.reads = Layer(layer)

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Learn from what natural training images give, [n,d], and their labels [n] (any integers).

        TrlError for values that are not finite, for labels that do not belong to them, and for nothing at all.
        """
        self._check(features)
        if labels.shape != features.shape[:1] or len(features) == 0:
            raise TrlError(f"{tuple(features.shape)} embeddings with {tuple(labels.shape)} labels: give one label each")
        self._learn(features.detach().double(), labels.to(features.device))
        self._keep(width=torch.tensor(features.shape[1], device=features.device))
        return self

    def restore(self, learnt: Mapping[str, Tensor]) -> None:
        """Become the detector whose `state_dict` was `learnt`. TrlError: no such detector learns that."""
        shapes = {"width": "", **self.learns}
        if learnt.keys() != shapes.keys():
            raise TrlError(f"holds {', '.join(sorted(learnt)) or 'nothing'} instead of {', '.join(sorted(shapes))}")
        sizes = {"1": 1}
        for name, shape in shapes.items():
            tensor, dtype = learnt[name], torch.float64 if shape else torch.int64
            for letter, size in zip(shape.split(), tensor.shape, strict=False):
                sizes.setdefault(letter, size)
            if tensor.dtype != dtype or list(tensor.shape) != [sizes.get(letter) for letter in shape.split()]:
                raise TrlError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} [{shape.replace(' ', ',')}]"
                )
            if tensor.numel() == 0 or not tensor.isfinite().all():
                raise TrlError(f"{name} is empty, or holds NaN or infinite values")
            if name == "width":
                sizes["d"] = int(tensor)
        if sizes["d"] < 1:
            raise TrlError(f"width is {sizes['d']}, not 1 or more")
        self._keep(**learnt)
        if self.learns and not self.score(torch.zeros(1, sizes["d"], device=self.width.device)).isfinite().all():
            raise TrlError(f"scores made with {', '.join(self.learns)} are not finite")

    def score(self, features: Tensor) -> Tensor:
        """Scores float64 [n] of [n,d], on the detector's device. TrlError if it is not fitted, or to another d."""
        if not hasattr(self, "width"):
            raise TrlError("the detector is not fitted: call fit(features, labels) with natural training embeddings")
        self._check(features)
        if features.shape[1] != self.width:
            raise TrlError(
                f"embeddings have {features.shape[1]} dimensions, the detector was fitted to {int(self.width)}"
            )
        rows = features.to(self.width.device, torch.float64).split(BATCH)  # type: ignore[no-untyped-call]
        return torch.cat([self._score(batch) for batch in rows])

    forward = score

    @abstractmethod
    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """`fit` on checked float64 features [n,d], n ≥ 1."""

    @abstractmethod
    def _score(self, features: Tensor) -> Tensor:
        """`score` of float64 features [n,d], at most BATCH of them."""

    def _keep(self, **learnt: Tensor) -> None:
        """Remember tensors: they move, are stored and are loaded with the detector."""
        for name, tensor in learnt.items():
            self.register_buffer(name, tensor)

    @staticmethod
    def _check(features: Tensor) -> None:
        if features.ndim != 2 or not features.is_floating_point():
            raise TrlError(f"embeddings are {tuple(features.shape)} {features.dtype}: give floats [n,d]")
        if not features.isfinite().all():
            raise TrlError("an embedding is NaN or infinite: the model that made it is broken")
