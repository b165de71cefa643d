"""Every attack changes an image only inside the threat's region, which is a function of the clean image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import ATTACKS, Misclassified, Undetected, build_attack
from trl.attacks.criterion import Both, Strategy
from trl.attacks.transfer import from_model
from trl.common.errors import TrlError
from trl.detectors import build_detector
from trl.regions import Background, Border, Region
from trl.threat import L2, Linf, Threat, build_threat

ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}
EPSILON = {"linf": 0.2, "l2": 1.0, "l1": 4.0}
RANDOM = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(3)) < 0.5
REGIONS: dict[str, Region] = {
    "background": Background(threshold=0.5),
    "border": Border(width=2),
    "mask": lambda x: RANDOM,
    # moves as soon as a value does
    "moving": lambda x: x < 0.3,
}
CASES = [(n, norm) for n in ATTACKS.names() for norm in ("linf", "l2", "l1") if n != "cw_l2" or norm == "l2"]
cases = pytest.mark.parametrize(("name", "norm"), CASES)


def attacked(name: str, threat: Threat, x: Tensor, seed: int = 0) -> Tensor:
    wanted = {"steps": 8, "restarts": 2, "queries": 60, "targets": 2, "binary_steps": 3}
    options = {key: wanted[key] for key in ATTACKS.options(name).model_fields if key in wanted}
    if name == "autoattack":
        options = {"version": "custom", "parts": ["apgd_ce", "fab"]}
    torch.manual_seed(seed)
    return build_attack(name, threat, **options)(network(), x, labels(x))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(98, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def images(n: int = 12) -> Tensor:
    """Many values at the ends of the box."""
    return (torch.rand(n, 2, 7, 7, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2).clamp(0, 1)


def labels(x: Tensor) -> Tensor:
    return network()(x).argmax(1)


def full(region: Region, x: Tensor) -> Tensor:
    return region(x.clone()).expand_as(x)


@pytest.mark.parametrize("region", REGIONS)
@cases
def test_nothing_changes_outside(name: str, norm: str, region: str) -> None:
    x, epsilon = images(), EPSILON[norm]
    x_adv = attacked(name, build_threat(norm, epsilon).within(REGIONS[region]), x)
    change = x_adv - x
    assert not change[~full(REGIONS[region], x)].any()
    assert change.flatten(1).any(1).float().mean() > 0.8
    assert change.double().flatten(1).norm(ORDER[norm], dim=1).max() <= epsilon + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@cases
def test_a_region_of_everything_is_none(name: str, norm: str) -> None:
    threat, x = build_threat(norm, EPSILON[norm]), images()
    assert torch.equal(attacked(name, threat.within(lambda x: x >= 0), x), attacked(name, threat, x))


@cases
def test_an_image_without_a_region_stays(name: str, norm: str) -> None:
    threat, x = build_threat(norm, EPSILON[norm]), images()
    assert torch.equal(attacked(name, threat.within(lambda x: x < 0), x), x)
    bright = x.flatten(1).sum(1) > 49

    def region(x: Tensor) -> Tensor:
        return (x.flatten(1).sum(1) > 49)[:, None, None, None].expand_as(x)

    some = attacked(name, threat.within(region), x)
    assert torch.equal(some[~bright], x[~bright])
    if name in ("bim", "fgsm", "mim", "deepfool"):  # nothing random: images do not depend on each other
        torch.testing.assert_close(some[bright], attacked(name, threat, x)[bright])


@cases
def test_the_region_is_asked_for_once_and_of_the_clean_images(name: str, norm: str) -> None:
    x, asked = images(), []

    def region(x: Tensor) -> Tensor:
        asked.append(x.clone())
        return x < 0.5

    attacked(name, build_threat(norm, EPSILON[norm]).within(region), x)
    assert len(asked) <= (2 if name == "autoattack" else 1)  # which has two parts
    clean = {tuple(image.flatten().tolist()) for image in x}
    assert all(tuple(image.flatten().tolist()) in clean for batch in asked for image in batch)


@pytest.mark.parametrize("strategy", ["joint", "selective", "orthogonal"])
@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
def test_attacks_that_know_a_detector(name: str, strategy: Strategy) -> None:
    x, region = images(), REGIONS["background"]
    detector = build_detector("energy").fit(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    undetected = Undetected(detector, detector.score(network()(x)).median().item())
    options = {"queries": 40} if name == "square" else {"steps": 6}
    attack = build_attack(name, Linf(0.2).within(region), Both(Misclassified(), undetected, strategy), **options)
    change = attack(network(), x, labels(x)) - x
    assert change.any()
    assert not change[~full(region, x)].any()


def test_attacks_on_a_surrogate() -> None:
    x, region = images(), REGIONS["border"]
    attack = from_model(network(), build_attack("pgd", L2(1.0).within(region), steps=3))
    change = attack(nn.Identity(), x, labels(x)) - x
    assert change.any()
    assert not change[~full(region, x)].any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_is_as_strong_as_an_attack_on_the_region_alone(norm: str) -> None:
    """The same as an attack on a model of the region's values, with the others as constants."""
    x, mask = images(40), RANDOM[0].flatten()
    fixed, threat = x.flatten(1)[:1].expand(40, -1), build_threat(norm, EPSILON[norm])
    x = torch.where(RANDOM, x, fixed.view_as(x))

    class Inner(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return network()(fixed[: len(values)].clone().masked_scatter(mask.expand(len(values), -1), values))

    inside = x.flatten(1)[:, mask]
    # not FAB or DeepFool, whose steps end within rounding of the boundary
    for name, options in {"bim": {"steps": 10}, "mim": {"steps": 10}, "fgsm": {}}.items():
        small = build_attack(name, threat, **options)(Inner(), inside, labels(x))
        large = build_attack(name, threat.within(lambda x: RANDOM), **options)(network(), x, labels(x))
        if norm == "l1" and name != "fgsm":  # takes 1 % of the values of the whole image
            continue
        torch.testing.assert_close(large.flatten(1)[:, mask], small, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_fill_the_region(norm: str) -> None:
    """As uniform as without a region, in as many dimensions as that has."""
    x, few = torch.full((3000, 1, 2, 4), 0.5), torch.tensor([1, 0, 0, 1, 0, 0, 1, 0]).bool().view(1, 1, 2, 4)
    torch.manual_seed(0)
    start = build_threat(norm, 0.4).within(lambda x: few).around(x).random_start() - 0.5
    assert not start[~few.expand_as(x)].any()
    alone = build_threat(norm, 0.4).random_start(torch.full((3000, 3), 0.5)) - 0.5
    sizes = [
        each.flatten(1).norm(ORDER[norm], dim=1).quantile(torch.tensor([0.1, 0.5, 0.9])) for each in (start, alone)
    ]
    torch.testing.assert_close(*sizes, atol=0.02, rtol=0)


def test_the_layout_is_kept() -> None:
    x = images().to(memory_format=torch.channels_last)
    for name in ("pgd", "apgd", "square", "fab"):
        x_adv = attacked(name, L2(1.0).within(lambda x: x.mean(1, keepdim=True) < 0.5), x)
        assert x_adv.is_contiguous(memory_format=torch.channels_last)


def per_row(x: Tensor) -> Tensor:
    return x[:, 0, 0, 0] < 0.5


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (per_row, r"the region returned \[4\] for images \[4, 2, 7, 7\]: return that shape"),
        (lambda x: x[:2] < 0.5, r"returned \[2, 2, 7, 7\] for images \[4, 2, 7, 7\]"),
        (lambda x: x[:, :, 1:] < 0.5, r"returned \[4, 2, 6, 7\]"),
        (lambda x: (x < 0.5).float(), "returned float32: it must return a bool tensor, such as x < 0.1"),
        (lambda x: (x < 0.5).numpy(), "returned ndarray: it must return a bool tensor"),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_region_that_does_not_fit(region: Callable[[Tensor], Tensor], message: str, norm: str) -> None:
    with pytest.raises(TrlError, match=message) as error:
        attacked("bim", build_threat(norm, 0.2).within(region), images(4))
    assert "\n" not in str(error.value)


def test_a_region_that_changes_its_images_changes_none_of_ours() -> None:
    x = images()
    before = x.clone()
    x_adv = attacked("bim", Linf(0.2).within(lambda x: x.round_() < 1), x)
    assert torch.equal(x, before)
    assert not (x_adv - x)[before.round() >= 1].any()


def test_what_is_no_region() -> None:
    with pytest.raises(TrlError, match="a region must be a function of the clean images, not Tensor"):
        Linf(0.1).within(RANDOM)  # type: ignore[arg-type]
    with pytest.raises(TrlError, match="has a region already; give one function that says both"):
        Linf(0.1).within(Border()).within(Background())
