"""Linear models, on which the best perturbation is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from trl.attacks import build_attack
from trl.threat import Threat, build_threat

N, D = 5, 12
DUAL_NORM = {"linf": 1, "l2": 2, "l1": float("inf")}

# APGD is at a linear optimum after a few steps; 50 leave it time to turn away from it, were it to.
# After a random start, each L2 step of size epsilon halves what is not along the gradient: 40 leave nothing of it.
OPTIONS: dict[str, dict[str, object]] = {
    "fgsm": {},
    "bim": {},
    "pgd": {"steps": 40, "step_size": 0.1},
    "cw": {"steps": 40, "step_size": 0.1},
    "mim": {},
    "pgd with restarts": {"steps": 40, "step_size": 0.1, "restarts": 3},
    "apgd": {"steps": 50},
    "apgd with dlr": {"loss": "dlr", "steps": 50, "restarts": 2},
    "apgd with cw": {"loss": "cw", "steps": 50},
    "apgd_t": {"steps": 50},
}
attacks = pytest.mark.parametrize("name", OPTIONS)
norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def two_classes() -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """The model, its margin z_0 - z_1, which no perturbation here makes negative, and the margin's gradient."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, D, generator=generator, dtype=torch.float64)
    model = linear(weight, torch.tensor([12.0, 0.0]))
    return model, lambda x: model(x) @ torch.tensor([1.0, -1.0], dtype=torch.float64), weight[0] - weight[1]


def five_classes() -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """As above; classes 2 to 4 are so unlikely that only the runner-up, class 1, counts, in DLR's divisor, too."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, D, generator=generator, dtype=torch.float64)
    model = linear(weight, torch.tensor([12.0, 0.0, -6e9, -7e9, -8e9]))
    return model, lambda x: model(x)[:, 0] - model(x)[:, 1], weight[0] - weight[1]


models = pytest.mark.parametrize("setting", [two_classes, five_classes])


def run(name: str, threat: Threat, model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return build_attack(name.split()[0], threat, **OPTIONS[name])(model, x, torch.zeros(len(x), dtype=torch.long))


@attacks
@norms
@models
def test_decrease_of_the_margin_is_epsilon_times_the_dual_norm(
    name: str, norm: str, setting: Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]]
) -> None:
    model, margin, weight = setting()
    x = 0.5 + 0.2 * (torch.rand(N, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5)
    threat = build_threat(norm, 0.1)  # far from the ends of the box
    x_adv = run(name, threat, model, x)
    best = 0.1 * weight.norm(DUAL_NORM[norm])
    torch.testing.assert_close(margin(x) - margin(x_adv), best.expand(N), rtol=1e-6, atol=0)
    torch.testing.assert_close(threat.distance(x_adv, x), torch.full((N,), 0.1).double(), rtol=1e-6, atol=0)


@attacks
@models
def test_box_cuts_the_linf_optimum(
    name: str, setting: Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]]
) -> None:
    model, margin, weight = setting()
    x = torch.rand(N, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    x_adv = run(name, build_threat("linf", 0.25), model, x)
    room = torch.where(weight > 0, x, 1 - x).clamp(max=0.25)  # how far each value can go against the weight
    best = (room * weight.abs()).sum(1)
    assert (best < 0.25 * weight.norm(1) - 1e-3).sum() > N / 2  # the box matters
    torch.testing.assert_close(margin(x) - margin(x_adv), best, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 2.0), ("l2", 0.9), ("linf", 0.3)])
@models
def test_fgsm_is_the_highest_point_of_ball_and_box(
    setting: Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]], norm: str, epsilon: float
) -> None:
    """Against a general solver, on images with values at the ends of the box."""
    model, margin, weight = setting()
    x = torch.rand(N, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    threat = build_threat(norm, epsilon)
    x_adv = build_attack("fgsm", threat)(model, x, torch.zeros(N, dtype=torch.long))
    assert (threat.distance(x_adv, x) > epsilon * (1 - 1e-9)).all()  # spent
    room, slope = torch.where(weight > 0, x, 1 - x).numpy(), weight.abs().numpy()
    size = {"l1": lambda d: d.sum(), "l2": lambda d: (d**2).sum() / epsilon, "linf": lambda d: d.max()}[norm]
    for i in range(N):
        best = optimize.minimize(
            lambda d: -d @ slope,
            np.full(D, 1e-3),
            bounds=[(0, min(r, epsilon)) for r in room[i]],
            constraints=[] if norm == "linf" else {"type": "ineq", "fun": lambda d: epsilon - size(d)},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert (margin(x) - margin(x_adv))[i].item() == pytest.approx(-best.fun, rel=1e-5)


@pytest.mark.parametrize("name", ["bim", "mim", "apgd", "apgd_t"])  # PGD's random start takes long to be gathered
@models
def test_box_cuts_the_l1_optimum(
    name: str, setting: Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]]
) -> None:
    """The values with the largest weights are filled up to the end of the box, one after the other."""
    model, margin, weight = setting()
    x = torch.rand(N, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    options = {} if name.startswith("apgd") else {"step_size": 0.02}
    torch.manual_seed(0)
    attack = build_attack(name, build_threat("l1", 2.0), steps=120, **options)
    x_adv = attack(model, x, torch.zeros(N, dtype=torch.long))
    order = weight.abs().argsort(descending=True)
    room = torch.where(weight > 0, x, 1 - x)[:, order]
    filled = (2.0 - room.cumsum(1) + room).clamp(min=0).minimum(room)
    best = (filled * weight[order].abs()).sum(1)
    assert (best < 2.0 * weight.abs().max() - 0.1).all()  # the box matters
    gained = margin(x) - margin(x_adv)
    assert (gained <= best + 1e-9).all()
    assert (gained > 0.98 * best).all()  # a step into the last value takes from those that are full


@attacks
@norms
def test_smallest_epsilon_that_fools_is_margin_over_dual_norm(name: str, norm: str) -> None:
    _, _, weight = two_classes()
    x = torch.full((1, D), 0.5, dtype=torch.float64)
    margin = 0.1 * weight.norm(DUAL_NORM[norm])
    model = linear(torch.stack([weight, torch.zeros_like(weight)]), torch.stack([margin - weight @ x[0], margin * 0]))
    for epsilon, fools in ((0.0998, False), (0.1002, True)):
        x_adv = run(name, build_threat(norm, epsilon), model, x)
        assert bool(model(x_adv).argmax(1) != 0) is fools


def test_mim_accumulates_normalised_gradients() -> None:
    """Against the recursion of the paper's algorithm 1, written out, on a model whose gradient turns."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 16).double(), nn.Linear(16, 3).double()
    model = nn.Sequential(first, nn.Tanh(), second)
    with torch.no_grad():
        first.weight.mul_(20)
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    results = []
    for decay in (0.0, 0.5, 1.0):
        expected, g = x.clone(), torch.zeros_like(x)
        for _ in range(7):
            for i in range(4):
                point = expected[i : i + 1].clone().requires_grad_()
                nn.functional.cross_entropy(model(point), y[i : i + 1]).backward()
                assert point.grad is not None
                g[i] = decay * g[i] + point.grad[0] / point.grad.abs().sum()
            expected = (expected + 0.05 * g.sign()).clamp(x - 0.3, x + 0.3).clamp(0, 1)
        x_adv = build_attack("mim", build_threat("linf", 0.3), steps=7, step_size=0.05, decay=decay)(model, x, y)
        torch.testing.assert_close(x_adv, expected)
        results.append(x_adv)
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[1], results[2])


@pytest.mark.parametrize("name", ["bim", "pgd", "cw", "mim"])
def test_default_step_size_is_two_and_a_half_epsilon_over_steps(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])

    def attacked(**options: float) -> Tensor:
        torch.manual_seed(1)
        return build_attack(name, build_threat("l2", 0.8), steps=4, **options)(model, x, y)

    torch.testing.assert_close(attacked(), attacked(step_size=2.5 * 0.8 / 4))
    assert not torch.allclose(attacked(), attacked(step_size=2.4 * 0.8 / 4))
