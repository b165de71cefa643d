"""C&W on linear models, where the smallest change is the margin over the Euclidean length of the weights."""

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import Targeted, cw_l2
from trl.common.errors import TrlError
from trl.threat import L2, Linf


def linear(classes: int, scale: float, dtype: torch.dtype) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A model, images far from the ends of [0, 1], all of class 0, and distances to the classes [n,classes]."""
    torch.manual_seed(classes)
    model = nn.Linear(30, classes).to(dtype)
    x = 0.5 + 0.1 * (torch.rand(12, 30) - 0.5).to(dtype)
    with torch.no_grad():
        model.weight.normal_().mul_(scale)
        model.bias.copy_(-(model.weight @ x.mean(0)))
        model.bias[0] += 5 * scale
        gaps = model(x)[:, :1] - model(x)
        lengths = (model.weight[0] - model.weight).norm(dim=1)
    return model, x, torch.zeros(12, dtype=torch.long), (gaps / lengths).where(lengths > 0, torch.inf)


def size(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("classes", "scale", "dtype", "factor"),
    [
        (2, 0.3, torch.float32, 1.01),
        (2, 3.0, torch.float64, 1.01),
        (3, 1.0, torch.float64, 1.1),
        (200, 1.0, torch.float32, 1.3),  # the runner-up that the margin names need not be the nearest class
    ],
)
def test_smallest_change_of_a_linear_model(classes: int, scale: float, dtype: torch.dtype, factor: float) -> None:
    model, x, y, distances = linear(classes, scale, dtype)
    best = distances.amin(1)
    x_adv = cw_l2(model, x, y, L2(10.0), steps=100)
    assert (model(x_adv).argmax(1) != y).all()
    assert (best > 0.05).all()
    ratio = size(x_adv, x) / best
    assert ratio.min() >= 1 - 1e-4
    assert ratio.median() <= 1.1
    assert ratio.max() <= factor


def test_targeted() -> None:
    model, x, y, distances = linear(3, 1.0, torch.float64)
    for offset in (1, 2):
        target = (y + offset) % 3
        x_adv = cw_l2(model, x, target, L2(10.0), Targeted(), steps=70)
        assert (model(x_adv).argmax(1) == target).all()
        lower = distances.gather(1, target[:, None]).squeeze(1)
        assert (size(x_adv, x) >= lower * (1 - 1e-6)).all()
        alone = size(x_adv, x) <= 1.05 * lower  # further where a third class is in between
        assert alone.float().mean() > 0.5


def test_in_the_ball_as_found_and_outside_projected() -> None:
    model, x, y, distances = linear(2, 1.0, torch.float64)
    best = distances.amin(1)
    epsilon = float(best.median())
    free, bound = (cw_l2(model, x, y, L2(e), steps=70) for e in (10.0, epsilon))
    near = size(free, x) < epsilon
    assert 0 < near.sum() < len(x)
    assert torch.equal(bound[near], free[near])
    assert (model(bound).argmax(1) != y)[near].all()
    torch.testing.assert_close(size(bound, x)[~near], torch.full(((~near).sum(),), epsilon).double())
    assert not (model(bound).argmax(1) != y)[best > epsilon].any()


def test_confidence_is_a_margin() -> None:
    model, x, y, distances = linear(2, 1.0, torch.float64)
    length = (model.weight[0] - model.weight[1]).norm().detach()
    x_adv = cw_l2(model, x, y, L2(10.0), steps=70, confidence=1.0)
    logits = model(x_adv)
    assert (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None]) >= 1).all()
    assert (size(x_adv, x) <= 1.05 * (distances.amin(1) + 1 / length)).all()


def test_what_is_a_success_already_stays() -> None:
    model, x, y, _ = linear(3, 1.0, torch.float32)
    wrong = y.clone()
    wrong[::2] = (y[::2] + 1) % 3
    x_adv = cw_l2(model, x, wrong, L2(10.0), steps=20)
    assert torch.equal(x_adv[::2], x[::2])
    assert (size(x_adv, x)[1::2] > 0).all()


def test_images_at_the_ends_of_the_box_and_of_any_shape() -> None:
    """There, tanh has next to no slope."""
    torch.manual_seed(0)
    x = torch.randint(2, (6, 1, 4, 4)).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    y = model(x).argmax(1)
    x_adv = cw_l2(model, x, y, L2(10.0), steps=200, binary_steps=5)
    assert (model(x_adv).argmax(1) != y).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_early_abort_saves_steps_and_finds_as_much() -> None:
    model, x, y, distances = linear(2, 1.0, torch.float64)
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    counts, sizes = [], []
    for abort_early in (True, False):
        calls.clear()
        sizes.append(size(cw_l2(model, x, y, L2(10.0), steps=150, abort_early=abort_early), x))
        counts.append(len(calls))
    hook.remove()
    assert counts[1] == 1 + 9 * 150
    assert counts[0] < 0.9 * counts[1]
    assert (sizes[0] <= 1.05 * distances.amin(1)).all()


def test_another_threat_is_refused() -> None:
    model, x, y, _ = linear(2, 1.0, torch.float32)
    with pytest.raises(TrlError, match="cw_l2 needs an l2 threat, not linf; use norm l2"):
        cw_l2(model, x, y, Linf(0.1))
