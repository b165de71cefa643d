"""FAB and DeepFool: how small their perturbations are, and what becomes of those that are larger than epsilon."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import Criterion, Targeted, build_attack, deepfool, fab, fab_t
from trl.attacks.losses import cw_margin
from trl.common.errors import TrlError
from trl.threat import build_threat

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
LARGE = 1e6
norms = pytest.mark.parametrize("norm", DUAL)
minimal = pytest.mark.parametrize(
    ("name", "options", "ratio"),
    [
        ("fab", {"steps": 10, "minimize": True}, 1.005),  # the final search finds the boundary itself
        ("fab_t", {"steps": 10, "minimize": True}, 1.005),
        ("deepfool", {"classes": 9}, 1.0201),  # its overshoot
    ],
)


def linear(classes: int, d: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, images so far inside the box that it does not matter, and their classes."""
    torch.manual_seed(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, classes)).double()
    x = 0.5 + 0.1 * (torch.rand(6, 1, 4, d // 4, dtype=torch.float64) - 0.5)
    with torch.no_grad():
        model[1].weight.mul_(3)
        model[1].bias.add_(0.1 - model(x).mean(0))  # no class is far off
        return model, x, model(x).argmax(1)


def least(model: nn.Module, x: Tensor, y: Tensor, norm: str, among: int = 1000) -> Tensor:
    """The distance [n] to the nearest of the `among` likeliest other classes, the box left out: margin / dual norm."""
    weight, logits = model[1].weight.detach(), model(x).detach()
    slope = (weight[y][:, None] - weight).norm(DUAL[norm], dim=2)
    distance = (logits.gather(1, y[:, None]) - logits) / slope
    others = logits.scatter(1, y[:, None], -torch.inf).topk(min(among, logits.shape[1] - 1)).indices
    return distance.gather(1, others).amin(1)


def network() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that is not linear, images with values on the ends of the box, and their classes."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10))
    with torch.no_grad():
        for layer in model[1::2]:
            layer.weight.mul_(2.5)
    x = (torch.rand(60, 1, 6, 6) * 1.4 - 0.2).clamp(0, 1)
    return model, x, model(x).argmax(1)


@minimal
@norms
@pytest.mark.parametrize("classes", [2, 3, 30])
def test_norms_on_linear_models(name: str, options: dict[str, Any], ratio: float, norm: str, classes: int) -> None:
    model, x, y = linear(classes)
    threat = build_threat(norm, LARGE)
    x_adv = build_attack(name, threat, **options)(model, x, y)
    assert (model(x_adv).argmax(1) != y).all()
    relative = threat.distance(x_adv, x) / least(model, x, y, norm, among=1000 if name == "fab" else 9)
    assert relative.min() > 1 - 1e-9
    assert relative.max() < ratio


@pytest.mark.parametrize("name", ["fab", "fab_t", "deepfool"])
@norms
def test_success_within_epsilon_or_else_the_balls_boundary(name: str, norm: str) -> None:
    model, x, y = linear(3)
    distance = least(model, x, y, norm)
    for share in (0.97, 1.03):
        threat = build_threat(norm, share * distance[0].item())
        x_adv = build_attack(name, threat)(model, x, y)
        near = distance * 1.025 < threat.epsilon  # DeepFool goes 2 % too far
        assert (model(x_adv).argmax(1) != y)[near].all()
        beyond = distance > threat.epsilon
        torch.testing.assert_close(
            threat.distance(x_adv, x)[beyond],
            torch.full((int(beyond.sum()),), threat.epsilon).double(),
            rtol=1e-4,
            atol=0,
        )
        assert bool(near[0]) is (share > 1)


@minimal
@norms
def test_images_that_are_misclassified_stay(name: str, options: dict[str, Any], ratio: float, norm: str) -> None:
    model, x, y = network()
    y = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 10)
    x_adv = build_attack(name, build_threat(norm, LARGE), **options)(model, x, y)
    assert torch.equal(x_adv[1::2], x[1::2])
    assert (model(x_adv).argmax(1) != y).all()


@norms
def test_fab_finds_smaller_norms_than_deepfool_and_smaller_ones_with_restarts(norm: str) -> None:
    model, x, y = network()
    threat = build_threat(norm, LARGE)

    def distances(name: str, **options: Any) -> Tensor:
        torch.manual_seed(0)
        x_adv = build_attack(name, threat, **options)(model, x, y)
        assert (model(x_adv).argmax(1) != y).all()
        return threat.distance(x_adv, x)

    once, often = distances("fab", minimize=True, steps=20), distances("fab", minimize=True, steps=20, restarts=3)
    assert (often <= once * (1 + 1e-6)).all()
    assert (often < once * 0.999).any()
    assert once.median() < 0.99 * distances("deepfool").median()
    assert distances("fab_t", minimize=True, steps=20).median() < 1.01 * once.median()


@norms
def test_what_is_given_up_early_would_not_have_got_there(norm: str) -> None:
    model, x, y = network()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    distance = build_threat(norm, 1.0).distance(
        fab_t(model, x, y, build_threat(norm, LARGE), targets=3, steps=50, minimize=True), x
    )
    all_evaluations = sum(sizes)
    assert all_evaluations > 3 * 50 * len(x)
    threat = build_threat(norm, distance.quantile(0.3).item())
    sizes.clear()
    x_adv = fab_t(model, x, y, threat, targets=3, steps=50)
    assert sum(sizes) < 0.75 * all_evaluations
    fooled = model(x_adv).argmax(1) != y
    assert (fooled | (distance > 0.995 * threat.epsilon)).all()
    assert fooled.float().mean() >= 0.25


def test_a_step_of_fab_t_costs_two_forwards_and_one_backward() -> None:
    model, x, y = linear(200)
    calls = {"forward": 0, "backward": 0}

    def count(kind: str) -> None:
        calls[kind] += 1

    model[1].register_forward_hook(lambda *_: count("forward"))
    model[0].register_full_backward_hook(lambda *_: count("backward"))
    fab_t(model, x, y, build_threat("l2", LARGE), targets=1, steps=9, minimize=True)
    assert calls["forward"] <= 2 * 9 + 1 + 1 + 6  # the first choice of targets, the verdict, the final search
    assert calls["backward"] == 9


@pytest.mark.parametrize("attack", [fab, deepfool])
@norms
def test_targeted(attack: Any, norm: str) -> None:
    threat = build_threat(norm, LARGE)
    model, x, y = linear(2)
    x_adv = attack(model, x, 1 - y, threat, Targeted())
    assert (model(x_adv).argmax(1) == 1 - y).all()
    assert (threat.distance(x_adv, x) < 1.06 * least(model, x, y, norm)).all()
    model, x, y = linear(10)
    x_adv = attack(model, x, (y + 1) % 10, threat, Targeted())
    assert (model(x_adv).argmax(1) == (y + 1) % 10).all()
    model, x, y = network()
    target = (y + torch.arange(len(y)) % 9 + 1) % 10
    x_adv = attack(model, x, target, threat, Targeted())
    reached = (model(x_adv).argmax(1) == target).float().mean()
    assert reached > (0.8 if attack is fab else 0.6)  # there are targets that PGD does not reach either
    assert torch.equal(attack(model, x, y, threat, Targeted()), x)  # there already


@pytest.mark.parametrize("attack", [fab, fab_t, deepfool])
@norms
def test_successes_are_beyond_the_boundary_by_more_than_rounding(attack: Any, norm: str) -> None:
    """In float32, judged in float64; with the tie on the side that counts as a success."""
    model, x, _ = network()
    y = model(x).argmax(1)
    options = {} if attack is deepfool else {"minimize": True, "steps": 20}
    x_adv = attack(model, x, y, build_threat(norm, LARGE), **options)
    logits = model.double()(x_adv.double())
    margin = cw_margin(logits, y)
    assert (margin > 50 * torch.finfo(torch.float32).eps * logits.gather(1, y[:, None])[:, 0].abs()).all()


class Mean(nn.Module):
    """Two classes: brighter than 1/2 on average, or darker."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return 10 * torch.stack([mean, 1 - mean], 1)


@pytest.mark.parametrize("attack", [fab, fab_t, deepfool])
@norms
def test_the_overshoot_is_not_cut_by_the_box(attack: Any, norm: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(32, 3, 64, 64)
    y = Mean()(x).argmax(1)
    x_adv = attack(Mean(), x, y, build_threat(norm, LARGE))
    assert (Mean()(x_adv).argmax(1) != y).all()


def test_targeted_deepfool_ends_beyond_the_boundary_even_without_overshoot() -> None:
    model, x, y = linear(10)
    target = (y + 1) % 10
    for norm in DUAL:
        x_adv = deepfool(model, x, target, build_threat(norm, LARGE), Targeted(), overshoot=0.0)
        assert (model(x_adv).argmax(1) == target).all()


def test_criteria_and_options_that_do_not_fit() -> None:
    class Other(Criterion):
        def loss(self, loss: Any) -> Any:
            return loss

        def met(self, outputs: Tensor, y: Tensor) -> Tensor:
            return outputs[:, 0] > 0

    model, x, y = linear(3)
    threat = build_threat("linf", 0.1)
    with pytest.raises(TrlError, match="fab_t picks its own target classes; use fab"):
        fab_t(model, x, y, threat, Targeted())
    for attack in (fab, deepfool):
        with pytest.raises(
            TrlError, match=r"only the criteria Misclassified and Targeted \(given Other\); use another"
        ):
            attack(model, x, y, threat, Other())
    for options in ({"steps": 0}, {"restarts": 0}, {"eta": 0.0}):
        with pytest.raises(TrlError, match="must be above 0"):
            fab(model, x, y, threat, **options)
    with pytest.raises(TrlError, match="targets must be above 0"):
        fab_t(model, x, y, threat, targets=0)
    with pytest.raises(TrlError, match="classes must be above 0"):
        deepfool(model, x, y, threat, classes=0)


@pytest.mark.parametrize("attack", [fab, fab_t, deepfool])
def test_misclassified_images_beyond_the_box_by_rounding_come_back_inside(attack: Any) -> None:
    model, x, y = network()
    x_adv = attack(model, x + 5e-7, (y + 1) % 10, build_threat("linf", 0.1))
    assert x_adv.max() <= 1
    torch.testing.assert_close(x_adv, x, rtol=0, atol=1e-6)
