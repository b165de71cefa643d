"""Transfer attacks: adversarial images made on another model or by another tool.

They use no gradient of the attacked model, so gradient masking does not stop them (Papernot et al. 2017,
arXiv 1602.02697; Athalye et al. 2018, section 3.1). `evaluate` checks that they respect the threat.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from trl.attacks.base import Attack
from trl.common.arrays import read_npy, read_npz, read_safetensors
from trl.common.errors import TrlError
from trl.common.images import image_keys
from trl.nn.modes import frozen

KEY = "adversarials"  # in a file that holds several arrays


class Transfer(ABC):
    """An attack (model, x, y) → x_adv that ignores `model`."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial images for x."""


def from_model(surrogate: nn.Module, attack: Attack) -> Transfer:
    """An attack (model, x, y) → x_adv that runs `attack` on `surrogate`, on the surrogate's device.

    An attack that continues past the surrogate's decision boundary, such as `pgd` with one restart, transfers best.
    """
    return _Surrogate(surrogate, attack)


def from_file(path: str | Path, images: Tensor) -> Transfer:
    """An attack (model, x, y) → x_adv that looks up x_adv in a file: row i belongs to row i of `images`.

    `images`: every image that the attack will be called with, uint8 or float in [0, 1], [n,…]. The file is safetensors
    or npz (key "adversarials", as the stage `attack` writes it, or a single array), or npy; uint8 or float, shaped like
    `images`. Equal images share one adversarial image. TrlError: the file cannot be read or does not fit.
    """
    return _Stored(Path(path), images)


class _Surrogate(Transfer):
    def __init__(self, surrogate: nn.Module, attack: Attack) -> None:
        self.surrogate, self.attack = surrogate, attack

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        weight = next(self.surrogate.parameters(), x)
        with frozen(self.surrogate), torch.enable_grad():
            x_adv = self.attack(self.surrogate, x.to(weight.device), y.to(weight.device))
        return x_adv.detach().to(x.device)


class _Stored(Transfer):
    def __init__(self, path: Path, images: Tensor) -> None:
        self.path, self.adversarials = path, _read(path)
        if self.adversarials.shape != images.shape:
            raise TrlError(
                f"{path}: holds adversarial images {list(self.adversarials.shape)} for images {list(images.shape)}; "
                "give the images that they were made from, in the same order"
            )
        self.rows = {key: row for row, key in enumerate(image_keys(images))}

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        try:
            rows = [self.rows[key] for key in image_keys(x)]
        except KeyError:
            raise TrlError(
                f"{self.path}: asked for an image that was not given to from_file; "
                "give from_file all images of the evaluation"
            ) from None
        return self.adversarials[rows].to(x)


def _read(path: Path) -> Tensor:
    """The images as floats [n,…]. Nothing is unpickled."""
    if path.suffix == ".safetensors":
        found = read_safetensors(path)
    elif path.suffix == ".npz":
        found = read_npz(path)
    elif path.suffix == ".npy":
        found = {KEY: read_npy(path)}
    else:
        raise TrlError(f"{path}: unknown file type; save the adversarial images as .safetensors, .npy or .npz")
    if KEY not in found and len(found) != 1:
        raise TrlError(f"{path}: holds {', '.join(found) or 'nothing'}; name the array of images {KEY!r}")
    images = found.get(KEY, next(iter(found.values())))
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TrlError(f"{path}: holds {images.dtype}; give uint8, or floats in [0, 1]")
    return images.to(torch.promote_types(images.dtype, torch.float32))
