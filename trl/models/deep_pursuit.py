"""Deep Pursuit (Cazenavette, Murdock & Lucey, CVPR 2021, arXiv 2011.14427): all codes of a network inferred jointly.

A layer of a ReLU network, ReLU(Dᵀt - λ), is one step towards a sparse code Γ ≥ 0 with DΓ ≈ t. The pursuit minimises
½ Σ_j ‖t_j - D_j Γ_j‖² + Σ_j λ_j·Γ_j over the codes Γ_j ≥ 0 of all layers, where t_1 is the image and
t_j = Σ_{k<j} B_jkᵀ Γ_k: B_jk is the identity for k = j - 1, and a skip connection for earlier layers.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, relu

from trl.common.errors import TrlError
from trl.common.numbers import Count, Fraction
from trl.models.base import Classifier, Mean, Shape, Std

SIDE = 3  # of all filters, in pixels
Skip = tuple[Count, Count]  # from the codes of a layer to the input of a later one, both counted from 1


def deep_pursuit(
    classes: int,
    shape: Shape,
    *,
    sweeps: Annotated[int, Field(ge=0)] = 5,
    pursuit: Literal["joint", "layered"] = "joint",
    filters: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 32),
    strides: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 1),
    skips: tuple[Skip, ...] = (),
    momentum: Fraction = 0.5,
    mean: Mean = (),
    std: Std = (),
) -> Classifier:
    """Layers of 3×3 `filters` with `strides`; the embedding is the last code, flattened.

    `joint`: T = `sweeps` over all layers. `layered` is the baseline of Papyan et al. (JMLR 2017): T steps on a layer's
    code, which is then fixed. T = 0 is the plain ReLU network. A skip (k, j) adds the codes of layer k to the input of
    layer j, through a 1×1 convolution where their sizes differ; without skips, the network is a chain.
    TrlError: a stride that does not fit its maps, not one stride per layer, or a skip that is none.
    """
    body = DeepPursuit(shape, filters, strides, skips, sweeps, pursuit == "joint", momentum)
    return Classifier(nn.Sequential(body, nn.Flatten()), body.embedding, classes, shape, mean, std)


class DeepPursuit(nn.Module):
    """Maps images [n,c,h,w] to the last layer's code [n,c',h',w']; the codes pass through `codes`, for hooks.

    Layers are counted from 0 here. `feeds` and `takes` say which layers a layer's codes feed and from which it takes
    its input t, each with the name of the B between them.
    """

    dictionaries: "Sequence[TransposableConv2d]"
    connections: "Mapping[str, TransposableConv2d | Same]"

    def __init__(
        self,
        shape: Shape,
        filters: tuple[int, ...],
        strides: tuple[int, ...],
        skips: tuple[Skip, ...],
        sweeps: int,
        joint: bool,
        momentum: float,
    ) -> None:
        super().__init__()
        self.sweeps, self.joint, self.momentum = sweeps, joint, momentum
        sizes = _sizes(shape, filters, strides)
        layers = range(len(filters))
        self.dictionaries = nn.ModuleList(  # type: ignore[assignment]
            TransposableConv2d(sizes[j], sizes[j + 1], SIDE) for j in layers
        )
        connections = nn.ModuleDict()
        self.feeds: list[list[tuple[int, str]]] = [[] for _ in layers]
        self.takes: list[list[tuple[int, str]]] = [[] for _ in layers]
        for k, j in [*((j - 1, j) for j in layers[1:]), *_checked_skips(skips, len(filters))]:
            name, (source, target) = f"{k + 1}-{j + 1}", (sizes[k + 1], sizes[j])
            same = source == target
            connections[name] = Same() if same else TransposableConv2d(source, target, 1, bias=False)
            self.takes[j].append((k, name))
            if joint:  # in the layered pursuit, later layers do not act on a code
                self.feeds[k].append((j, name))
        self.connections = connections  # type: ignore[assignment]
        self.codes = nn.ModuleList(nn.ReLU() for _ in layers)
        c, h, w = sizes[-1]
        self.embedding = c * h * w

    def forward(self, x: Tensor) -> Tensor:
        """The last code [n,c',h',w'] after all sweeps; gradients flow through all of them."""
        rates = self.rates() if self.sweeps else []
        codes: list[Tensor] = []
        for j, dictionary in enumerate(self.dictionaries):
            target = self.target(j, x, codes)
            codes.append(relu(dictionary(target)))
            if not self.joint:
                before = codes[j]
                for _ in range(self.sweeps):
                    residuals = {j: target - dictionary.transpose(codes[j])}
                    codes[j], before = self._step(j, codes[j], before, residuals, rates[j]), codes[j]
        if self.joint:
            earlier = codes
            for _ in range(self.sweeps):
                codes, earlier = self.sweep(x, codes, earlier, rates), codes
        # they are not negative, so this changes nothing but lets hooks see the codes, each of them once
        return [module(code) for module, code in zip(self.codes, codes, strict=True)][-1]

    def sweep(self, x: Tensor, codes: list[Tensor], earlier: list[Tensor], rates: list[Tensor]) -> list[Tensor]:
        """One step on each layer's code in turn, each with the newest codes of the others.

        `earlier` are the codes before the last sweep, from which momentum leads on; `rates` are the step sizes.
        """
        codes = [*codes]
        images = [dictionary.transpose(code) for dictionary, code in zip(self.dictionaries, codes, strict=True)]
        for j in range(len(codes)):
            # a layer that j feeds comes later, so that its D Γ is still the one computed above
            touched = (j, *(i for i, _ in self.feeds[j]))
            residuals = {i: self.target(i, x, codes) - images[i] for i in touched}
            codes[j] = self._step(j, codes[j], earlier[j], residuals, rates[j])
        return codes

    def rates(self) -> list[Tensor]:
        """The step size of every layer: 1 / (‖D‖² + Σ‖B‖² over the layers it feeds), a bound on the curvature."""
        curvatures = [
            reduce(add, [self.connections[name].squared_norm() for _, name in feeds], dictionary.squared_norm())
            for dictionary, feeds in zip(self.dictionaries, self.feeds, strict=True)
        ]
        return [1 / curvature for curvature in curvatures]

    def target(self, j: int, x: Tensor, codes: list[Tensor]) -> Tensor:
        """t of layer j: the image, or what the codes of earlier layers send."""
        return reduce(add, [self.connections[name](codes[k]) for k, name in self.takes[j]]) if j else x

    def objective(self, x: Tensor, codes: list[Tensor]) -> Tensor:
        """What the joint pursuit minimises, for each image: [n]."""
        parts = []
        for j, (dictionary, code) in enumerate(zip(self.dictionaries, codes, strict=True)):
            residual = self.target(j, x, codes) - dictionary.transpose(code)
            parts.append(_inner(residual, residual) / 2 + self._penalty(j, code))
        return reduce(add, parts)

    def descent(self, j: int, residuals: dict[int, Tensor]) -> Tensor:
        """The negative gradient of the objective with respect to the code of layer j.

        `residuals` t - D Γ, of layer j and of those that it feeds.
        """
        direction: Tensor = self.dictionaries[j](residuals[j])  # Dᵀ(t - DΓ) - λ, since the bias is -λ
        for i, name in self.feeds[j]:
            direction = direction - self.connections[name].transpose(residuals[i])
        return direction

    def _penalty(self, j: int, code: Tensor) -> Tensor:
        """λ·Γ for each image: [n]."""
        return -_inner(code, self.dictionaries[j].bias.view(-1, 1, 1))  # type: ignore[union-attr]

    def _step(self, j: int, code: Tensor, earlier: Tensor, residuals: dict[int, Tensor], rate: Tensor) -> Tensor:
        if self.momentum and earlier is not code:
            code, residuals = self._extrapolate(j, code, earlier, residuals)
        return relu(code + rate * self.descent(j, residuals))

    def _extrapolate(
        self, j: int, code: Tensor, earlier: Tensor, residuals: dict[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Code and residuals further along the last change, except for images whose objective that would raise."""
        change = relu(code + self.momentum * (code - earlier)) - code
        changes = {j: -self.dictionaries[j].transpose(change)}
        changes |= {i: self.connections[name](change) for i, name in self.feeds[j]}
        rise = reduce(add, [_inner(residuals[i] + changes[i] / 2, changes[i]) for i in changes])
        kept = (rise + self._penalty(j, change) <= 0).view(-1, 1, 1, 1)
        return code + kept * change, {i: residuals[i] + kept * changes[i] for i in changes}


class TransposableConv2d(nn.Conv2d):
    """A convolution between maps of fixed sizes (channels, height, width), with its transpose and its spectral norm.

    `vector` [1,c',h',w'] approaches the first singular vector, by one power iteration in each forward pass in training
    mode; it depends on the weights alone, so that several processes keep the same one.
    """

    vector: Tensor

    def __init__(self, source: Shape, target: Shape, side: int, bias: bool = True) -> None:
        stride = (source[1] // target[1], source[2] // target[2])
        super().__init__(source[0], target[0], side, stride, padding=side // 2, bias=bias)
        self.register_buffer("vector", torch.randn(1, *target))
        for _ in range(30):
            self._iterate()

    def transpose(self, y: Tensor) -> Tensor:
        """The transpose of the convolution (without bias): maps [n,c',h',w'] to [n,c,h,w]."""
        return self._transpose(y, self.weight)

    def squared_norm(self) -> Tensor:
        """The largest squared singular value, estimated from `vector`: never too large. A differentiable scalar."""
        if self.training:
            self._iterate()
        vector = self.vector.clone()  # the next pass changes it in place
        return self.transpose(vector).square().sum() / vector.square().sum()

    def _iterate(self) -> None:
        weight = self.weight.detach()
        vector = self._conv_forward(self._transpose(self.vector, weight), weight, None)
        self.vector.copy_(vector / vector.norm())

    def _transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        # the stride divides the size of the source and the side is odd: this restores the size
        rest = (self.stride[0] - 1, self.stride[1] - 1)
        return conv_transpose2d(y, weight, None, self.stride, self.padding, rest)  # type: ignore[arg-type]


class Same(nn.Identity):
    """The identity as a connection."""

    def transpose(self, y: Tensor) -> Tensor:
        """Maps, as they are."""
        return y

    def squared_norm(self) -> int:
        """1."""
        return 1


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3))


def _sizes(shape: Shape, filters: tuple[int, ...], strides: tuple[int, ...]) -> list[Shape]:
    """The image's shape, then that of every layer's code."""
    if len(strides) != len(filters):
        raise TrlError(f"strides: needs one for each of the {len(filters)} entries of filters, not {len(strides)}")
    sizes = [shape]
    for layer, (count, stride) in enumerate(zip(filters, strides, strict=True), 1):
        _, h, w = sizes[-1]
        if h % stride or w % stride or stride > SIDE:
            raise TrlError(
                f"strides: {stride} of layer {layer} does not fit its input of {h}×{w} pixels; "
                f"a stride must divide height and width and be at most {SIDE}, the side of a filter"
            )
        sizes.append((count, h // stride, w // stride))
    return sizes


def _checked_skips(skips: tuple[Skip, ...], layers: int) -> list[tuple[int, int]]:
    """The skips counted from 0."""
    for k, j in skips:
        if not 1 <= k < j - 1 <= layers - 1 or skips.count((k, j)) > 1:
            raise TrlError(
                f"skips: ({k}, {j}) must lead once from a layer to one after the next; there are {layers}, from 1 on"
            )
    return [(k - 1, j - 1) for k, j in skips]
