"""The base of all detectors of adversarial images: fit to natural training data only, then score each image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from trl.common.errors import TrlError


class Layer(NamedTuple):
    """A submodule of a classifier, given by its path such as "layer4" or "body.3" (see `named_modules`)."""

    path: str


Reads = Literal["features", "logits", "layers"] | Layer
BATCH = 512  # rows scored at a time: detectors hold [rows, classes, d]


class Detector(nn.Module, ABC):
    """Scores images by a classifier's activations: higher = more adversarial.

    `reads` says which: the embedding, the logits, or the pooled outputs of several layers or of the one at the path
    `layer`. `observe` computes them for any module.
    `fit` stores what it learns in float64 buffers, so a detector moves between devices and is saved like a model.
    `learns` gives their names and shapes, such as "k d d": a letter means the same size everywhere, and d the width.
    `config` holds the arguments of `build_detector`. The score is differentiable in its input, so it can be attacked.
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
        """Learn from the features [n,d] of natural training images and their labels [n] (any integers).

        TrlError if there are no features, if one is not finite, or if the labels do not match.
        """
        self._check(features)
        if labels.shape != features.shape[:1] or len(features) == 0:
            raise TrlError(f"{tuple(features.shape)} embeddings with {tuple(labels.shape)} labels: give one label each")
        self._learn(features.detach().double(), labels.to(features.device))
        self._keep(width=torch.tensor(features.shape[1], device=features.device))
        return self

    def restore(self, learnt: Mapping[str, Tensor]) -> None:
        """Restore a detector from the `state_dict` `learnt`. TrlError if that does not belong to such a detector."""
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
        """Scores float64 [n] of features [n,d], on the detector's device. TrlError if not fitted, or to another d."""
        if not hasattr(self, "width"):
            raise TrlError("the detector is not fitted: call fit(features, labels) with natural training embeddings")
        self._check(features)
        if features.shape[1] != self.width:
            raise TrlError(
                f"embeddings have {features.shape[1]} dimensions, but the detector was fitted to {int(self.width)}"
            )
        rows = features.to(self.width.device, torch.float64).split(BATCH)  # type: ignore[no-untyped-call]
        return torch.cat([self._score(batch) for batch in rows])

    forward = score

    @abstractmethod
    def _learn(self, features: Tensor, labels: Tensor) -> None:
        """Implements `fit` on checked float64 features [n,d], n ≥ 1."""

    @abstractmethod
    def _score(self, features: Tensor) -> Tensor:
        """Implements `score` for at most BATCH float64 features [n,d]."""

    def _keep(self, **learnt: Tensor) -> None:
        """Register tensors as buffers, which move and are saved with the detector."""
        for name, tensor in learnt.items():
            self.register_buffer(name, tensor)

    @staticmethod
    def _check(features: Tensor) -> None:
        if features.ndim != 2 or not features.is_floating_point():
            raise TrlError(f"embeddings are {tuple(features.shape)} {features.dtype}: give floats [n,d]")
        if not features.isfinite().all():
            raise TrlError("an embedding is NaN or infinite: check the model and its images")
