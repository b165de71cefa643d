"""A contact sheet of samples: what a proxy draws, at a glance."""

from pathlib import Path

import numpy as np
import torch

from trl.data import ImageSet

COLUMNS, ROWS = 12, 20  # at most so many images of a class, and classes
SIDE = 40  # pixels of the longer side of an image, at least


def write_contact_sheet(images: ImageSet, path: Path) -> None:
    """Write the first images of each class, a class per row, as a PNG to `path`."""
    from PIL import Image

    c, h, w = images.shape
    classes = images.labels.unique().tolist()[:ROWS]  # type: ignore[no-untyped-call]
    sheet = np.full((len(classes) * (h + 1), COLUMNS * (w + 1), c), 255, np.uint8)
    for row, k in enumerate(classes):
        for column, index in enumerate(torch.nonzero(images.labels == k)[:COLUMNS, 0].tolist()):
            top, left = row * (h + 1), column * (w + 1)
            sheet[top : top + h, left : left + w] = images.images[index].permute(1, 2, 0).numpy()
    picture = Image.fromarray(sheet[..., 0] if c == 1 else sheet)
    scale = -(-SIDE // max(h, w))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
