from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trl.common.errors import TrlError
from trl.regions import REGIONS, Background, Border, Foreground, MaskFile, build_region
from trl.spec import describe_spec
from trl.threat import Linf, build_threat


def test_background_and_foreground_share_the_pixels() -> None:
    """By the mean over channels: a red pixel is no background."""
    x = torch.tensor([[0.0, 0.9, 0.3], [0.1, 0.0, 0.0]]).T[None, :, None]  # [1,3,1,2]
    assert x.shape == (1, 3, 1, 2)
    assert Background(threshold=0.2)(x).tolist() == [[[[False, True]]]]
    assert Foreground(threshold=0.2)(x).tolist() == [[[[True, False]]]]
    flat = torch.tensor([[0.0, 0.1, 0.5]])
    assert Background()(flat).tolist() == [[True, False, False]]
    assert Background()(flat[:, None]).tolist() == [[[True, False, False]]]


@pytest.mark.parametrize(
    ("shape", "width", "inside"),
    [((2, 3, 5, 4), 1, 3 * 2), ((2, 1, 5, 4), 2, 0), ((1, 7), 2, 3), ((3, 5, 5), 2, 1), ((2, 2, 2, 6, 6), 1, 16)],
)
def test_border(shape: tuple[int, ...], width: int, inside: int) -> None:
    mask = Border(width=width)(torch.rand(shape))
    pixels = shape[-2:] if len(shape) > 2 else shape[-1:]
    assert mask.shape == (*[1] * (len(shape) - len(pixels)), *pixels)
    assert int((~mask).sum()) == inside
    assert mask[..., 0].all()
    assert mask[..., -1].all()


@pytest.mark.parametrize("name", [name for name in REGIONS.names() if name != "mask"])
@pytest.mark.parametrize("shape", [(3, 1, 6, 6), (2, 3, 5, 4), (4, 9), (2, 5, 5)])
def test_every_region_fits_every_shape(name: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert Linf(0.1).within(build_region(name)).around(x).project(x + 1).shape == shape


def stored(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "masks.npz", **arrays)
    return str(folder / "masks.npz")


def test_masks_are_found_by_their_images(tmp_path: Path) -> None:
    images = (torch.rand(6, 1, 4, 4) * 255).to(torch.uint8)
    masks = torch.rand(6, 1, 4, 4) < 0.5
    for kept in (masks, masks.int()):
        region = build_region("mask", path=stored(tmp_path, images=images.numpy(), masks=kept.numpy()))
        rows = torch.tensor([4, 1, 1])
        assert torch.equal(region(images[rows].float() / 255), masks[rows])
        assert torch.equal(region(images[rows]), masks[rows])
    with pytest.raises(TrlError, match=r"masks.npz: holds no mask for some of the images; add those"):
        region(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((5, 1, 2, 2)), "masks": np.ones((4, 1, 2, 2))}, "holds 4 masks for 5 images"),
        ({"masks": np.ones((4, 1, 2, 2))}, r"no images; it holds masks .*numpy.savez\(FILE, images=…, masks=…\)"),
        ({"images": np.zeros((1, 2)), "masks": np.full((1, 2), 255)}, "must be bool, or 0 and 1; save `masks > 0`"),
    ],
)
def test_files_that_are_no_masks(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError, match=message):
        MaskFile(path=stored(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"name": "sky"}, "unknown region 'sky'; known: background, border, foreground, mask"),
        ({"name": "border", "width": 0}, "region border: width: .*greater than or equal to 1"),
        ({"name": "background", "threshold": 25}, "region background: threshold: .*less than or equal to 1"),
        ({"name": "background", "level": 0.1}, "region background: level: unknown key; allowed: threshold"),
        ({"name": "mask"}, "region mask: path: is missing"),
        ({"name": "mask", "path": "nowhere.npz"}, "nowhere.npz: cannot be read"),
    ],
)
def test_regions_that_do_not_exist(region: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError, match=message) as error:
        build_threat("linf", 0.1, region)
    assert "\n" not in str(error.value)


def test_a_region_by_its_name() -> None:
    given = {"name": "background", "threshold": 0.2}
    assert build_threat("linf", 0.3, given) == Linf(0.3).within(Background(threshold=0.2))
    assert describe_spec(given) == "background:threshold=0.2"
    assert describe_spec({"name": "border"}) == "border"
