"""ARC against what is known of distributions, and on digits."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import norm, wasserstein_distance
from torch import nn

from trl.common.errors import TrlError
from trl.config import Train
from trl.data import ImageSet, load_dataset, split
from trl.models import build_model
from trl.proxies import build_proxy
from trl.proxies.arc import Discrimination, discriminate
from trl.threat import L2, Linf, Threat


def config(epochs: int, batch_size: int = 50, lr: float = 0.01) -> Train:
    return Train.model_validate(
        {
            **{
                "epochs": epochs,
                "batch_size": batch_size,
                "optimizer": {"lr": lr},
                "attack": {"name": "pgd", "steps": 3},
            },
            "validation": {"attack": {"name": "fgsm"}},
        }
    )


def line(values: np.ndarray) -> ImageSet:
    """Images of one pixel."""
    pixels = torch.from_numpy(values.round().clip(0, 255).astype(np.uint8)).view(-1, 1, 1, 1)
    return ImageSet(pixels, torch.zeros(len(pixels)).long())


def on_the_line(real: np.ndarray, proxy: np.ndarray, threat: Threat, top: float, epochs: int = 8) -> Discrimination:
    half = len(real) // 2

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2))

    epsilons = np.linspace(0, top, 8).tolist()
    sets = (line(proxy), line(real[:half]), line(real[half:]))
    return discriminate(*sets, build, threat, config(epochs, 200, 0.05), epsilons=epsilons)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)], ids=str)
def test_two_point_masses_have_the_closed_form(threat: Threat) -> None:
    """They are told apart up to half their distance D, and never beyond: ARC = D/4."""
    distance = 102 / 255
    found = on_the_line(np.full(400, 51.0), np.full(400, 153.0), threat, top=0.35, epochs=40)
    # the fifth epsilon is D/2 itself, where a tie decides
    assert found.accuracy[:4] == (1, 1, 1, 1)
    assert max(found.accuracy[5:]) <= 0.5
    assert found.area == pytest.approx(distance / 4, abs=0.05 / 4 + 1e-6)  # a step between two epsilons


def test_equal_distributions_have_none() -> None:
    generator = np.random.default_rng(0)
    found = on_the_line(generator.normal(128, 20, 2000), generator.normal(128, 20, 2000), Linf(0.1), top=0.2)
    assert found.area < 0.01


@pytest.mark.parametrize("apart", [1.5, 3])
def test_of_gaussians_it_keeps_below_a_quarter_of_the_wasserstein_distance(apart: float) -> None:
    """Of equal width σ, and a distance of 2m σ: ARC is σ times the integral of Φ(m - t) - 1/2 over t in [0, m]."""
    generator = np.random.default_rng(0)
    real, proxy = generator.normal(100, 20, 2000), generator.normal(100 + 20 * apart, 20, 2000)
    found = on_the_line(real, proxy, Linf(0.1), top=0.2)
    m = apart / 2
    exact = 20 / 255 * (m * (norm.cdf(m) - 0.5) + norm.pdf(m) - norm.pdf(0))
    assert found.area == pytest.approx(exact, rel=0.15)
    assert 4 * found.area <= wasserstein_distance(real, proxy) / 255


def test_on_digits_noise_is_much_farther_than_what_is_fitted() -> None:
    data = split(load_dataset("digits"), validation=150, seed=0)
    areas = {}
    for name in ("noise", "kde", "gaussian"):
        [proxies] = build_proxy(name, data.train, 10)(800)
        build = partial(build_model, "mlp", 2, (1, 8, 8), width=32)
        sets = (proxies, data.train, data.validation)
        found = discriminate(*sets, build, Linf(0.2), config(6), epsilons=(0, 0.1, 0.3))
        areas[name] = found.area
    assert areas["noise"] > 3 * max(areas["kde"], areas["gaussian"])


def test_scores_find_what_does_not_belong() -> None:
    data = split(load_dataset("digits"), validation=150, seed=0)
    [near], [far] = (build_proxy(name, data.train, 10)(n) for name, n in (("kde", 560), ("noise", 240)))
    both = ImageSet(torch.cat([near.images, far.images]), torch.cat([near.labels, far.labels]))
    build = partial(build_model, "mlp", 2, (1, 8, 8), width=64)
    found = discriminate(both, data.train, data.validation, build, Linf(0.1), config(10), epsilons=[0, 0.1])
    kept = found.least_detectable(0.7)
    assert len(kept) == 560
    assert (kept < 560).float().mean() > 0.98
    assert torch.equal(kept, kept.sort().values)


def test_too_few_images_are_one_line() -> None:
    empty = line(np.zeros(0))
    with pytest.raises(TrlError, match=r"ARC needs images of each kind, and two proxies: 0 training images"):
        discriminate(line(np.zeros(3)), empty, line(np.zeros(3)), nn.Identity, Linf(0.1), config(1))
