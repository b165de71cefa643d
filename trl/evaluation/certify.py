"""Randomized smoothing (Cohen et al., ICML 2019, arXiv 1902.02918): predictions that hold in a certified ℓ2 ball."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.common.files import write_atomic
from trl.common.images import as_input
from trl.common.progress import Progress, batches, say
from trl.common.seeds import derive_seed
from trl.evaluation.intervals import accuracy
from trl.evaluation.run import check_setup, seeded
from trl.evaluation.state import fingerprint
from trl.nn.inference import device_of, full_precision
from trl.nn.logits import checked_logits
from trl.nn.modes import evaluating
from trl.results.base import Accuracy
from trl.results.certify import CertifiedPoint, CertifyResult

ABSTAINS = -1  # the prediction where no class is certified
COUNTS = "counts.safetensors"


class Noisy(nn.Module):
    """`model` on images with Gaussian noise of standard deviation `sigma`, drawn anew in each pass and not clipped.

    The smoothed classifier predicts the class that these outputs favour most often. To attack it, give an ℓ2 attack
    `EoT(Noisy(model, sigma), 20)`.
    """

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n,k] for one draw per image of x [n,c,h,w]."""
        logits: Tensor = self.model(torch.randn_like(x).mul_(self.sigma).add_(x))
        return logits


@dataclass(frozen=True)
class Certificates:
    """The results of `certify`, per image, on the CPU.

    `predictions`: int64 [n], the smoothed classifier's class, or ABSTAINS. `radii`: float64 [n], in ℓ2 for images in
    [0, 1]: within it the prediction does not change; 0 where it abstains. `labels`: int64 [n].
    """

    sigma: float
    selection: int
    samples: int
    alpha: float
    predictions: Tensor
    radii: Tensor
    labels: Tensor

    def correct(self, radius: float = 0.0) -> Tensor:
        """bool [n]: the prediction is the label, and certified up to `radius`."""
        return (self.predictions == self.labels) & (self.radii >= radius)

    def curve(self, radii: tuple[float, ...]) -> list[CertifiedPoint]:
        """Certified accuracy at each radius, smallest first, with its 95 % interval."""
        found = {radius: accuracy(self.correct(radius)) for radius in sorted({*radii})}
        return [
            CertifiedPoint(radius=radius, accuracy=at["accuracy"], low=at["low"], high=at["high"])
            for radius, at in found.items()
        ]

    def result(self) -> CertifyResult:
        """The settings and figures: what a pipeline run keeps in certify.json."""
        return CertifyResult(
            sigma=self.sigma,
            selection=self.selection,
            samples=self.samples,
            alpha=self.alpha,
            accuracy=Accuracy(**accuracy(self.correct())),
            abstained=float((self.predictions == ABSTAINS).double().mean()),
            mean_radius=float((self.radii * self.correct()).mean()),
        )


def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    sigma: float,
    *,
    selection: int = 100,
    samples: int = 10_000,
    alpha: float = 0.001,
    batch_size: int = 1000,
    seed: int = 0,
    state: str | Path | None = None,
    key: str | None = None,
) -> Certificates:
    """Certify the smoothed classifier of `model`: the class that it most often gives to an image with Gaussian noise.

    `x` [n,…] and `y` [n] as for `evaluate`. Per image, `selection` draws of noise of standard deviation `sigma`, on the
    scale of images in [0, 1], select a class; `samples` further draws give a lower Clopper-Pearson bound p on its
    probability that holds with probability 1 - `alpha`. If p > ½, the smoothed classifier predicts this class within an
    ℓ2 radius of sigma · Φ⁻¹(p), whatever the attack; else it abstains. A wrong certificate occurs with probability at
    most alpha per image. No radius exceeds sigma · Φ⁻¹(alpha^(1/samples)), so large radii need many samples or a large
    sigma. Train for the same sigma (objective `smoothing`): other models are rarely right under noise.

    `model` is any module from images to logits, in fp32 and eval mode; noise is not clipped, so it sees values outside
    [0, 1]. `batch_size`: noisy copies of an image per pass.

    The noise depends only on `seed`, the image's index and the batch; the caller's generators are left untouched. With
    a folder `state`, an interrupted call that is repeated resumes after its last image and ends with the same result.
    `key`: as for `evaluate`.

    TrlError for settings out of range, and for invalid images, labels or logits.
    """
    _check_settings(sigma, selection, samples, alpha)
    classes = check_setup(model, x, y, batch_size)
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise TrlError(
            f"labels range from {int(y.min())} to {int(y.max())}, but the model has {classes} classes: "
            f"give labels 0 to {classes - 1}"
        )
    file = None
    if state is not None:  # alpha is left out: counts do not depend on it
        settings = (certify, sigma, selection, samples, batch_size, seed, device_of(model).type)
        file = Path(state, fingerprint(model, x, y, {}, *settings, key=key), COUNTS)
    selected, hits = _restored(file, len(x))
    noisy, labels, predictions = Noisy(model, sigma), y.cpu().long(), torch.full_like(selected, ABSTAINS)
    radii = torch.zeros(len(x), dtype=torch.float64)
    with (
        evaluating(model),
        torch.no_grad(),
        full_precision(device_of(model)),
        Progress("certify", len(x), "images") as progress,
    ):
        for i in range(len(x)):
            if hits[i] < 0:
                image = as_input(x[i : i + 1], device_of(model))
                first = _counts(noisy, image, classes, selection, batch_size, (seed, "selection", i))
                selected[i] = first.argmax()
                hits[i] = _counts(noisy, image, classes, samples, batch_size, (seed, "certify", i))[selected[i]]
                if file is not None:
                    write_atomic(file, save({"selected": selected, "hits": hits}))
            radii[i] = certified_radius(int(hits[i]), samples, alpha, sigma)
            predictions[i] = selected[i] if radii[i] > 0 else ABSTAINS
            so_far = Certificates(
                sigma, selection, samples, alpha, predictions[: i + 1], radii[: i + 1], labels[: i + 1]
            )
            shares = {
                f"certified r={radius:g}": f"{so_far.correct(radius).double().mean():.2%}" for radius in (0.0, sigma)
            }
            progress.update(1, **shares)
    return Certificates(sigma, selection, samples, alpha, predictions, radii, labels)


def certified_radius(hits: int, samples: int, alpha: float, sigma: float) -> float:
    """The ℓ2 radius certified by a class that `hits` of `samples` noisy images get; 0 if there is none.

    sigma · Φ⁻¹(p), with p the lower Clopper-Pearson bound of confidence 1 - `alpha`.
    """
    from scipy.stats import beta, norm

    low = beta.ppf(alpha, hits, samples - hits + 1) if hits else 0.0
    return float(sigma * norm.ppf(low)) if low > 0.5 else 0.0


def _counts(
    noisy: Noisy, image: Tensor, classes: int, samples: int, batch_size: int, seeds: tuple[int | str, ...]
) -> Tensor:
    """int64 [classes]: how many of `samples` noisy copies of an image [1,…] get each class."""
    counts = torch.zeros(classes, dtype=torch.int64, device=image.device)
    for index, rows in enumerate(batches(samples, batch_size)):
        copies = image.expand(rows.stop - rows.start, *image.shape[1:])
        with seeded(image.device, derive_seed(*seeds, index)):
            counts += checked_logits(noisy, copies, "noisy images").argmax(1).bincount(minlength=classes)
    return counts.cpu()


def _restored(file: Path | None, n: int) -> tuple[Tensor, Tensor]:
    """int64 [n] each: every image's selected class and its hits, -1 where they are still to be counted."""
    if file is not None and file.exists():
        try:
            found = load(file.read_bytes())
            return found["selected"], found["hits"]
        except (OSError, SafetensorError, KeyError) as error:
            say(f"{file.parent}: the state of an interrupted certification is damaged ({error}); starting over")
    return torch.full((n,), -1), torch.full((n,), -1)


def _check_settings(sigma: float, selection: int, samples: int, alpha: float) -> None:
    """TrlError unless all are in range."""
    if not (sigma > 0 and math.isfinite(sigma)):
        raise TrlError(f"sigma is {sigma}: give the noise's standard deviation, above 0, such as 0.25")
    if not 0 < alpha < 1:
        raise TrlError(f"alpha is {alpha}: give a probability between 0 and 1, such as 0.001")
    for name, count in (("selection", selection), ("samples", samples)):
        if not isinstance(count, int):
            raise TrlError(f"{name} is {count!r}: give a whole number of draws of noise")
        if count < 1:
            raise TrlError(f"{name} is {count}: give at least 1 draw of noise")
