"""Random changes to training images: a few tensor operations on the whole batch, on its device.

Each change is a function of the images and of what was drawn for each of them; `augment` draws.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def augment(x: Tensor, crop: int, flip: bool, saturation: float) -> Tensor:
    """Images [n, c, h, w] in [0, 1], each changed in its own way; they stay in [0, 1].

    `crop` is the zero-padding in pixels of a random crop; `flip` mirrors every second image on average; `saturation` s
    (RGB only) draws factors from [max(0, 1 - s), 1 + s]. Random numbers come from the global generator of x's device.
    """
    if crop:
        top, left = torch.randint(2 * crop + 1, (len(x), 2), device=x.device).unbind(1)
        x = cropped(x, crop, top, left)
    if flip:
        x = flipped(x, torch.rand(len(x), device=x.device) < 0.5)
    if saturation:
        low, high = max(0.0, 1 - saturation), 1 + saturation
        x = saturated(x, torch.empty(len(x), device=x.device).uniform_(low, high))
    return x


def cropped(x: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad [n, c, h, w] with zeros and cut [h, w] out of image i from row top[i] and column left[i], in 0..2·padding."""
    n, c, h, w = x.shape
    image = torch.arange(n, device=x.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=x.device).view(1, c, 1, 1)
    row = (top.view(n, 1) + torch.arange(h, device=x.device)).view(n, 1, h, 1)
    column = (left.view(n, 1) + torch.arange(w, device=x.device)).view(n, 1, 1, w)
    return pad(x, (padding,) * 4)[image, channel, row, column]


def flipped(x: Tensor, mirror: Tensor) -> Tensor:
    """Mirror image i of [n, c, h, w] left to right where mirror[i] (bool [n])."""
    return torch.where(mirror.view(-1, 1, 1, 1), x.flip(-1), x)


def saturated(x: Tensor, factor: Tensor) -> Tensor:
    """Blend image i of RGB [n, 3, h, w] with its grey version: factor[i] 0 is grey, 1 unchanged, above 1 more vivid."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue  # torchvision's weights
    return torch.lerp(grey, x, factor.view(-1, 1, 1, 1)).clamp(0, 1)
