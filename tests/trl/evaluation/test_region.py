"""Evaluation under a threat with a region: what is refused, what is said, and what a state belongs to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny_models import Net, images, shift
from trl.attacks import Attack, build_attack
from trl.attacks.transfer import from_file
from trl.common.errors import TrlError
from trl.evaluation import Evaluation, attack_all, epsilon_curve, evaluate
from trl.evaluation.masking import check_budget
from trl.evaluation.plausibility import check_setting
from trl.models import build_model
from trl.regions import Background, Border
from trl.threat import L2, Linf, Threat

LEFT = torch.tensor([True, False]).expand(1, 3, 2, 2)  # the left column of 2×2 pixels
THREAT = Linf(0.2).within(lambda x: LEFT)


def evaluated(attack: Attack, threat: Threat = THREAT, **options) -> Evaluation:
    x, y = images()
    return evaluate(Net(), x, y, {"a": attack}, threat, checks=False, **options)


def test_adversarials_differ_inside_alone() -> None:
    x, _ = images()
    found = evaluated(build_attack("pgd", THREAT))
    change = found.adversarials - x / 255
    assert not change[~LEFT.expand_as(x)].any()
    assert change.any()
    everywhere = evaluated(build_attack("pgd", Linf(0.2)), Linf(0.2))
    assert everywhere.worst.sum() < found.worst.sum() < found.correct["clean"].sum()


def test_an_attack_that_leaves_the_region_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrlError, match=r"attack 'a' leaves the region by up to 0.1: give it the threat of the eval"):
        evaluated(shift(0.1))
    x, _ = images()
    np.save(tmp_path / "global.npy", (x / 255 + 0.1).clamp(0, 1).numpy())
    with pytest.raises(TrlError, match=r"attack 'a' leaves the region by up to 0.1"):
        evaluated(from_file(tmp_path / "global.npy", x))


@pytest.mark.parametrize("rounding", [0.0, 5e-6])
def test_adversarials_of_a_file_that_stay_inside(tmp_path: Path, rounding: float) -> None:
    """Values outside that were rounded, as by a normalisation there and back, are set back."""
    x, _ = images()
    stored = torch.where(LEFT, (x / 255 + 0.2).clamp(0, 1), (x / 255 + rounding).clamp(0, 1))
    np.save(tmp_path / "local.npy", stored.numpy())
    change = evaluated(from_file(tmp_path / "local.npy", x)).adversarials - x / 255
    assert change.any()
    assert not change[~LEFT.expand_as(x)].any()


def test_eight_bits_stay_inside() -> None:
    x, _ = images()
    change = evaluated(build_attack("pgd", THREAT), eight_bit=True).adversarials - x / 255
    assert change.any()
    assert not change[~LEFT.expand_as(x)].any()


def never(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("an attack ran")


@pytest.mark.parametrize("run", [evaluate, attack_all])
def test_a_region_that_does_not_fit_is_seen_before_work(run) -> None:
    x, y = images()
    # only the last batch would show it
    threat = Linf(0.2).within(lambda x: x[: len(x) - (len(x) < 40)] < 0.5)
    with pytest.raises(TrlError, match=r"the region returned \[19, 3, 2, 2\] for images \[20, 3, 2, 2\]"):
        run(Net(), x, y, {"a": never} if run is evaluate else never, threat, 40)


def test_a_function_of_yours_needs_a_key_and_named_regions_do_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = build_model("mlp", 3, (1, 4, 4), width=8, depth=1), torch.rand(9, 1, 4, 4), torch.arange(9) % 3

    def run(threat: Threat, attacked: Threat | None = None, key: str | None = None) -> int:
        attacks = {"a": build_attack("fgsm", attacked or Linf(0.0))}
        evaluate(model, x, y, attacks, threat, checks=False, state=tmp_path, key=key)
        return len(list(tmp_path.iterdir()))

    yours = Linf(0.2).within(lambda x: x < 0.5)
    with pytest.raises(TrlError, match=r"the evaluation needs a key to be resumed, since \S+<lambda> is your own code"):
        run(yours)
    with pytest.raises(TrlError, match=r"attack 'a' needs a key to be resumed, since \S+<lambda> is your own code"):
        run(Linf(0.2), attacked=yours)
    assert run(yours, key="1") == 1
    regions = (Border(width=1), Border(width=2), Background(threshold=0.5), Background(threshold=0.6))
    for states, region in enumerate(regions, start=2):
        assert run(Linf(0.2).within(region)) == states  # a state of its own
    assert run(Linf(0.2).within(Border(width=1))) == 5


def test_unbounded_pgd_is_not_held_to_the_region() -> None:
    """A region too small to fool anything is no masked gradient."""
    x, y = images()
    corner = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    corner[..., 0, 0, 0] = True
    assert [sign.name for sign in check_budget(Net(), x, y, L2(0.5).within(lambda x: corner))] == []


def test_an_unlimited_epsilon_in_a_region_is_a_patch() -> None:
    x, _ = images()
    assert [s.name for s in check_setting(Net(), x, {}, Linf(1.0))] == ["epsilon"]
    assert check_setting(Net(), x, {}, Linf(1.0).within(lambda x: LEFT)) == []


def test_an_empty_region_is_said() -> None:
    x, _ = images(50)
    x[:10] = 255
    (sign,) = check_setting(Net(), x, {}, Linf(0.1).within(lambda x: (x < 1).any(1, keepdim=True)))
    assert sign.name == "region"
    assert sign.message.startswith("the region of 20% of the images is empty: ")


def test_a_curve_inside_a_region() -> None:
    x, y = images()

    def threat(epsilon: float) -> Threat:
        return Linf(epsilon).within(lambda x: LEFT)

    points = epsilon_curve(Net(), x, y, lambda e: build_attack("pgd", threat(e)), threat, [0.0, 0.1, 0.3])
    assert points[0].accuracy > points[-1].accuracy
