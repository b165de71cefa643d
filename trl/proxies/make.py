"""Draw a proxy's samples into a folder, select among them, and say what they are like."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trl.common.arrays import digest
from trl.common.progress import batches
from trl.data import ImageSet, Splits, save_samples
from trl.proxies.arc import discriminate
from trl.proxies.base import PART
from trl.proxies.build import build_proxy
from trl.proxies.nearest import memorised, nearest_distances, share_of_copies, some
from trl.proxies.sheet import write_contact_sheet
from trl.results import ArcResult, Distances, ProxyResult
from trl.threat import Threat

if TYPE_CHECKING:
    from trl.config import Proxy, Train

COMPARED = 2000  # samples whose nearest training image is looked for


def make_samples(
    spec: "Proxy",
    splits: Splits,
    folder: Path,
    network: Callable[[], nn.Module],
    threat: Threat,
    config: "Train",
    device: str = "cpu",
) -> tuple[ProxyResult, ArcResult]:
    """Fit a proxy to the training images, and write its samples and a contact sheet to `folder`.

    `network` makes a discriminator with two logits, which is trained as `config` says and scored on the validation
    images. With `spec.select` the samples that it finds hardest to tell from real ones are kept.
    """
    train, held_out = splits.train, splits.validation
    sampler = build_proxy(spec.name, train, len(splits.classes), spec.seed, **spec.options)
    drawn = folder / "drawn" if spec.select else folder
    samples = save_samples(sampler(spec.count), spec.count, train.shape, drawn)
    found = discriminate(samples, train, held_out, network, threat, config, seed=spec.seed, device=device)
    if spec.select:
        rows = found.least_detectable(spec.select)
        parts = (_rows(samples, rows[part]) for part in batches(len(rows), PART))
        samples = save_samples(parts, len(rows), train.shape, folder)
        shutil.rmtree(drawn)
    write_contact_sheet(samples, folder / "contact_sheet.png")
    near = nearest_distances(some(samples, COMPARED), train.images)
    usual = nearest_distances(some(held_out, COMPARED), train.images)
    copies = share_of_copies(near, usual)
    said = memorised(copies)
    counts = samples.labels.bincount(minlength=len(splits.classes)).tolist()
    result = ProxyResult(
        proxy=spec.name,
        options=spec.options,
        seed=spec.seed,
        data=splits.sha256,
        fitted_to=len(train),
        drawn=spec.count,
        kept=len(samples),
        samples=digest({"images": samples.images, "labels": samples.labels}),
        labels=dict(zip(splits.classes, counts, strict=True)),
        nearest=_distances(near),
        held_out=_distances(usual),
        copies=copies,
        warnings=[said] if said else [],
    )
    curve = {"epsilons": list(found.epsilons), "accuracy": list(found.accuracy)}
    return result, ArcResult(arc=found.area, norm=threat.name, **curve)


def _rows(images: ImageSet, rows: Tensor) -> ImageSet:
    return ImageSet(images.images[rows], images.labels[rows])


def _distances(values: Tensor) -> Distances:
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return Distances(low=low, median=median, high=high)
