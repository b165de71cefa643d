"""Randomized smoothing: certificates against closed forms and attacks, and after an interruption."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

from tests.helpers.tiny_models import Net, Threshold, images
from trl.attacks import build_attack
from trl.attacks.eot import EoT
from trl.common.errors import TrlError
from trl.evaluation import Certificates, Noisy, certify
from trl.evaluation.certify import ABSTAINS, COUNTS, certified_radius
from trl.threat import L2


class Linear(nn.Module):
    """Two classes, apart by a hyperplane: the smoothed classifier has the same one, at any sigma."""

    def __init__(self, seed: int, pixels: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(pixels, generator=generator)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(-weight.sum() / 2)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight + self.bias
        return torch.stack([-z, z], 1)

    def margins(self, x: Tensor) -> Tensor:
        """The exact ℓ2 distance of every image to the hyperplane."""
        with torch.no_grad():
            return ((x.flatten(1) @ self.weight + self.bias).abs() / self.weight.norm()).double()


def linear_images(seed: int, n: int = 6) -> Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def own_labels(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), sigma=st.floats(0.05, 2), samples=st.sampled_from([1, 20, 300, 4000]))
def test_on_a_linear_model_no_radius_exceeds_the_margin(seed: int, sigma: float, samples: int) -> None:
    model, x = Linear(seed), linear_images(seed)
    # 240 images, each wrong with at most this probability
    found = certify(model, x, own_labels(model, x), sigma, samples=samples, alpha=1e-6, seed=seed)
    assert (found.radii <= model.margins(x)).all()
    certified = found.predictions != ABSTAINS
    assert torch.equal(found.predictions[certified], own_labels(model, x)[certified])


def test_on_a_linear_model_radii_tend_to_the_margin_from_below() -> None:
    model, sigma = Linear(1), 0.5
    x = linear_images(0, 30)
    margins = model.margins(x)
    gaps = []
    for samples in (100, 1000, 10_000, 100_000):
        radii = certify(model, x, own_labels(model, x), sigma, samples=samples, batch_size=20_000).radii
        assert (radii <= margins).all()
        gaps.append(float((margins - radii).max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 10 * gaps[-1]
    assert gaps[-1] < 0.02


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_the_bound_is_clopper_and_pearsons(alpha: float) -> None:
    for samples in (1, 2, 17, 1000):
        for hits in {0, 1, samples // 2, samples - 1, samples}:
            found = certified_radius(hits, samples, alpha, 0.5)
            low = binomtest(hits, samples, alternative="greater").proportion_ci(1 - alpha, "exact").low
            assert found == pytest.approx(0.5 * norm.ppf(low) if low > 0.5 else 0.0, abs=1e-9)
    assert certified_radius(100, 100, alpha, 2.0) == pytest.approx(2 * norm.ppf(alpha ** (1 / 100)))


@pytest.mark.parametrize(("alpha", "distance"), [(0.05, 0.0), (0.2, 0.0), (0.1, 0.02), (0.1, 0.2)])
def test_alpha_bounds_how_often_a_certificate_is_wrong(alpha: float, distance: float) -> None:
    """Hundreds of certifications of one image: the bound covers the margin in all but a share alpha of them."""
    sigma, runs = 0.25, 400
    x, y = torch.full((runs, 1, 1, 1), 0.5 + distance), torch.ones(runs, dtype=torch.int64)
    found = certify(Threshold(), x, y, sigma, selection=20, samples=100, alpha=alpha, seed=7)
    wrong = int(((found.predictions == 0) | (found.radii > distance)).sum())
    assert wrong <= binom.ppf(0.999, runs, alpha)
    if distance == 0.0:  # nothing is to be certified: it abstains, but not more often than alpha makes it
        assert binom.ppf(0.001, runs, 1 - alpha) <= int((found.predictions == ABSTAINS).sum()) < runs
    if distance == 0.2:
        assert int((found.predictions == 1).sum()) > 0.9 * runs


def test_an_attack_within_the_radius_leaves_what_is_certified() -> None:
    """APGD on the smoothed model by EoT: it fools images beyond their radius, and within it at most a share alpha."""
    torch.manual_seed(0)
    hidden, head = nn.Linear(12, 32), nn.Linear(32, 3, bias=False)
    hidden.bias.data = -hidden.weight.data.sum(1) / 2  # all classes meet in the middle of the cube
    model = nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), head)
    x = torch.rand(60, 3, 2, 2)
    sigma, alpha = 0.25, 0.01
    options = {"samples": 1000, "alpha": alpha}
    y = certify(model, x, torch.zeros(60, dtype=torch.int64), sigma, **options).predictions
    x, y = x[y != ABSTAINS], y[y != ABSTAINS]
    found = certify(model, x, y, sigma, seed=1, **options)
    fooled = {}
    for radius in (0.05, 0.3):
        torch.manual_seed(1)
        x_adv = build_attack("apgd", L2(radius), steps=15)(EoT(Noisy(model, sigma), 10), x, y)
        after = certify(model, x_adv, y, sigma, seed=2, **options).predictions
        fooled[radius] = (after != y) & (after != ABSTAINS)  # for certain
        certified = found.correct(radius)
        assert int((fooled[radius] & certified).sum()) <= binom.ppf(0.999, len(x), 2 * alpha)
        assert certified.double().mean() <= (~fooled[radius]).double().mean() + alpha
    assert fooled[0.3].double().mean() > 0.3  # the attack works
    assert found.correct(0.05).double().mean() > 0.5  # and there is something that it could break


def test_figures_and_curve() -> None:
    found = Certificates(
        *(0.5, 100, 1000, 0.001),
        predictions=torch.tensor([0, 1, ABSTAINS, 1]),
        radii=torch.tensor([0.3, 0.5, 0.0, 0.1], dtype=torch.float64),
        labels=torch.tensor([0, 1, 0, 0]),
    )
    assert [(p.radius, p.accuracy) for p in found.curve((0.5, 0.0, 0.4))] == [(0.0, 0.5), (0.4, 0.25), (0.5, 0.25)]
    result = found.result()
    assert (result.accuracy.accuracy, result.accuracy.n, result.abstained) == (0.5, 4, 0.25)
    assert result.mean_radius == pytest.approx(0.2)
    point = found.curve((0.4,))[0]
    assert point.low < 0.25 < point.high


def test_seeds_decide_and_nothing_is_left_behind() -> None:
    x, y = images(12)
    model = Net().train()
    torch.manual_seed(5)
    before, pristine = torch.get_rng_state(), x.clone()
    options = {"samples": 300, "batch_size": 128}
    first, same, other = (certify(model, x, y, 0.3, seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert torch.equal(x, pristine)
    assert torch.equal(first.radii, same.radii)
    assert not torch.equal(first.radii, other.radii)
    assert (
        len({float(radius) for radius in certify(model, x[:1].expand(9, -1, -1, -1), y[:1].expand(9), 0.3).radii}) > 1
    )
    floats = certify(model, x.double() / 255, y.int(), 0.3, **options)
    assert torch.equal(floats.predictions, first.predictions)
    torch.testing.assert_close(certify(model, x[:4], y[:4], 0.3, **options).radii, first.radii[:4], rtol=0, atol=0)


def test_every_draw_is_counted_whatever_the_batches() -> None:
    x, y = torch.ones(1, 1, 1, 1), torch.ones(1, dtype=torch.int64)  # far from the threshold: each draw hits
    for batch_size in (1, 7, 50, 1000):
        found = certify(Threshold(), x, y, 0.01, selection=3, samples=50, batch_size=batch_size)
        assert float(found.radii) == certified_radius(50, 50, 0.001, 0.01)


SLOW = {"selection": 10, "samples": 40, "batch_size": 20, "seed": 3}
SCRIPT = f"""
import json, sys, time
from tests.helpers.tiny_models import Net, images
from trl.evaluation import certify

class Slow(Net):
    def forward(self, x):
        if float(sys.argv[2]):
            print("pass", flush=True)
            time.sleep(float(sys.argv[2]))
        return super().forward(x)

x, y = images(12)
found = certify(Slow(), x, y, 0.2, state=sys.argv[1], key="1", **{SLOW})
print(json.dumps([found.predictions.tolist(), found.radii.tolist()]))
"""


def test_killed_and_repeated_it_ends_with_the_same_result(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]

    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def command(seconds: float) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(tmp_path), str(seconds)]

    with subprocess.Popen(command(0.05), cwd=root, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(2 + 3 * 4 + 2):  # the trial, four images of three passes each, and into the fifth
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    files = list(tmp_path.rglob(COUNTS))
    assert len(files) == 1
    again = subprocess.run(command(0), cwd=root, env=env, capture_output=True, text=True, check=True)
    expected = certify(Net(), *images(12), 0.2, **SLOW)
    assert json.loads(again.stdout.splitlines()[-1]) == [expected.predictions.tolist(), expected.radii.tolist()]


def test_a_state_spares_what_is_done_and_is_tied_to_its_settings(tmp_path: Path) -> None:
    class Counting(Net):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).passes += 1
            return super().forward(x)

    def passes(**changed: object) -> int:
        Counting.passes = 0
        options = {"sigma": 0.2, "samples": 50, "state": tmp_path, "key": "1"} | changed
        certify(Counting(), *images(5), **options)
        return Counting.passes

    trial = 2
    assert passes() == trial + 10
    assert passes() == passes(alpha=0.2) == trial  # the same counts
    for changed in ({"sigma": 0.3}, {"samples": 60}, {"selection": 5}, {"seed": 1}, {"batch_size": 100}, {"key": "2"}):
        assert passes(**changed) == trial + 10


def test_a_damaged_state_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = images(5)
    first = certify(Net(), x, y, 0.2, samples=50, state=tmp_path, key="1")
    (file,) = tmp_path.rglob(COUNTS)
    file.write_bytes(file.read_bytes()[:-9])
    assert torch.equal(certify(Net(), x, y, 0.2, samples=50, state=tmp_path, key="1").radii, first.radii)
    assert "is damaged" in capsys.readouterr().out


class NanUnderNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(((x < 0) | (x > 1)).flatten(1).any(1, keepdim=True), math.nan, x.flatten(1)[:, :3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigma": 0}, r"sigma is 0: give the noise's standard deviation, above 0"),
        ({"sigma": -0.5}, "sigma is -0.5"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"alpha": 0}, "alpha is 0: give a probability between 0 and 1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"samples": 0}, "samples is 0: give at least 1"),
        ({"samples": 10.5}, "samples is 10.5: give a whole number"),
        ({"selection": -1}, "selection is -1: give at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"x": torch.zeros(0, 3, 2, 2), "y": torch.zeros(0).long()}, "there are no images"),
        ({"y": torch.full((4,), 3)}, "labels range from 3 to 3, but the model has 3 classes: give labels 0 to 2"),
        ({"y": torch.full((4,), -1)}, "labels range from -1 to -1"),
        ({"x": torch.full((4, 3, 2, 2), 7.0)}, r"pixels lie in \[7, 7\]"),
        ({"model": NanUnderNoise()}, "the model's logits are NaN on noisy images"),
        ({"model": nn.Flatten(0)}, "the model fails on images"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(changed: dict, message: str) -> None:
    x, y = images(4)
    given = {"model": Net(), "x": x, "y": y, "sigma": 0.5, "samples": 20} | changed
    with pytest.raises(TrlError, match=message) as caught:
        certify(given.pop("model"), given.pop("x"), given.pop("y"), given.pop("sigma"), **given)
    assert "\n" not in str(caught.value)
