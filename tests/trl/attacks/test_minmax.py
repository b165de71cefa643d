"""Min-max over domains: its parts against other ways to compute them, and problems where it must win."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trl.attacks import EoT, FoolsAll, SideBySide, Transformed, apgd, apgd_t, minmax, pgd, square, universal
from trl.attacks.losses import cw_margin
from trl.attacks.minmax import next_weights, project_simplex, projection, weighted_minmax
from trl.common.errors import TrlError
from trl.evaluation import evaluate
from trl.regions import Border
from trl.threat import L1, L2, Linf, Threat, build_threat

threats = pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4), L1(1.5)], ids=str)


def by_bisection(values: Tensor) -> Tensor:
    """max(v - shift, 0) with the shift at which the parts sum to 1."""
    low, high = values.amin(1, keepdim=True) - 1, values.amax(1, keepdim=True)
    for _ in range(70):
        middle = (low + high) / 2
        over = (values - middle).clamp(min=0).sum(1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (values - high).clamp(min=0)


@given(st.integers(1, 30), st.floats(-3, 6), st.integers(0, 10**6))
def test_the_projection_to_the_simplex_is_that_of_bisection(count: int, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(20, count, dtype=torch.float64) * 10**size / 100
    found = project_simplex(values)
    torch.testing.assert_close(found, by_bisection(values), rtol=0, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(20, dtype=torch.float64))
    inside = values.softmax(1)
    torch.testing.assert_close(project_simplex(inside), inside, rtol=0, atol=1e-12)


def test_huge_values_leave_the_weights_finite() -> None:
    found = project_simplex(torch.tensor([[1e6, -1e6, 0.0], [1e6, 1e6, 1e6]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [1 / 3] * 3]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0, 1e6])
def test_the_weights_settle_at_the_maximum(gamma: float) -> None:
    """The fixed point is the projection of 1/K + hardness/gamma: the maximum of Σ wᵢhᵢ - gamma/2·‖w - 1/K‖²."""
    hardness = torch.tensor([[3.0, 1.0, 0.5], [2.0, 1.9, 1.8]], dtype=torch.float64)
    weights = torch.full_like(hardness, 1 / 3)
    for _ in range(3000):
        weights = next_weights(weights, hardness, 0.02, gamma)
    expected = project_simplex(1 / 3 + hardness / gamma) if gamma else torch.eye(3, dtype=torch.float64)[[0, 0]]
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


@threats
def test_in_every_norm_the_projection_is_the_nearest_point(threat: Threat) -> None:
    """Against convex optimisation by Dykstra's alternating projections to the ball and to [0, 1]."""
    torch.manual_seed(0)
    x = torch.rand(30, 12, dtype=torch.float64)
    x_adv = x + torch.randn_like(x) * 0.6

    def to_ball(point: Tensor) -> Tensor:
        change = point - x
        if threat.name == "linf":
            return x + change.clamp(-threat.epsilon, threat.epsilon)
        if threat.name == "l2":
            return x + change * (threat.epsilon / change.norm(dim=1, keepdim=True)).clamp(max=1)
        shrunk = by_bisection(change.abs() / threat.epsilon) * threat.epsilon
        return torch.where(change.abs().sum(1, keepdim=True) <= threat.epsilon, point, x + shrunk.copysign(change))

    point, p, q = x_adv, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(400):
        moved = to_ball(point + p)
        p = point + p - moved
        point = (moved + q).clamp(0, 1)
        q = moved + q - point
    found = projection(threat.around(x))(x_adv)
    assert threat.excess(found, x).max() == 0
    torch.testing.assert_close(found, point, rtol=0, atol=1e-6)


class Line(nn.Module):
    """Two classes on images [n,1,1,d]: the margin of class 1 over class 0 is ⟨slope, x - ½⟩ + height."""

    def __init__(self, slope: list[float], height: float) -> None:
        super().__init__()
        self.slope, self.height = nn.Parameter(torch.tensor(slope)), height

    def forward(self, x: Tensor) -> Tensor:
        margin = (x.flatten(1) - 0.5) @ self.slope + self.height
        return torch.stack([torch.zeros_like(margin), margin], 1)


def one_image(pixels: int = 1) -> tuple[Tensor, Tensor]:
    return torch.full((1, 1, 1, pixels), 0.5), torch.zeros(1, dtype=torch.long)


def against() -> SideBySide:
    """Both are fooled for changes in (-0.05, -0.02) only; the average pulls to +0.1, where the second is not."""
    return SideBySide([Line([400.0], 20.0), Line([-100.0], -2.0)])


def fooled(model: nn.Module, x_adv: Tensor, y: Tensor, domains: int = 2) -> Tensor:
    return FoolsAll(domains).met(model(x_adv), y)


def test_it_fools_both_where_the_average_can_never() -> None:
    model, (x, y) = against(), one_image()
    options: dict[str, Any] = {"steps": 100, "step_size": 0.002}
    found = weighted_minmax(model, x, y, Linf(0.1), FoolsAll(2), **options)
    average = weighted_minmax(model, x, y, Linf(0.1), FoolsAll(2), strategy="average", **options)
    assert fooled(model, found.x_adv, y).all()
    assert not fooled(model, average.x_adv, y).any()
    assert average.weights.tolist() == [[0.5, 0.5]]


@threats
def test_the_weights_end_on_the_hardest_domain(threat: Threat) -> None:
    """The same slope at three heights: the lowest is the hardest, wherever the image goes."""
    model, (x, y) = SideBySide([Line([1.0, 2.0], h) for h in (0.5, -4.0, 0.0)]), one_image(2)
    found = weighted_minmax(model, x, y, threat, FoolsAll(3), steps=200, gamma=0.0)
    torch.testing.assert_close(found.weights, torch.tensor([[0.0, 1.0, 0.0]]))
    assert threat.excess(found.x_adv, x).max() == 0


def network(seed: int, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, classes)).eval()


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    return torch.rand(n, 1, 4, 4), torch.randint(4, (n,))


@threats
def test_a_large_gamma_is_the_average(threat: Threat) -> None:
    model, (x, y) = SideBySide([network(i) for i in range(3)]), images()
    equal = weighted_minmax(model, x, y, threat, FoolsAll(3), strategy="average")
    drawn = weighted_minmax(model, x, y, threat, FoolsAll(3), gamma=1e6)
    torch.testing.assert_close(drawn.weights, equal.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn.x_adv, equal.x_adv, rtol=0, atol=1e-4)


@threats
def test_it_fools_more_than_the_average_and_stays_inside(threat: Threat) -> None:
    easy, hard = network(0), network(1)
    with torch.no_grad():
        easy[-1].weight.mul_(20)  # type: ignore[operator, index, union-attr]  # the average follows it alone
    model, (x, _) = SideBySide([easy, hard]), images(300)
    right = easy(x).argmax(1) == hard(x).argmax(1)
    x, y = x[right], easy(x).argmax(1)[right]
    shares = {}
    for strategy in ("minmax", "average"):
        x_adv = minmax(model, x, y, threat, FoolsAll(2), steps=40, weight_step=0.5, gamma=0.0, strategy=strategy)  # type: ignore[arg-type]
        assert threat.excess(x_adv, x).max() == 0
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        shares[strategy] = fooled(model, x_adv, y).float().mean()
    assert shares["minmax"] > shares["average"] + 0.02


def test_transformations_are_domains_and_an_expectation_is_over_draws() -> None:
    model, (x, y) = network(0), images()

    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    together = SideBySide([Transformed(model, lambda x: x.flip(-1)), Transformed(model, noisy)])
    torch.testing.assert_close(SideBySide([model, together.models[0]])(x)[:, 4:], model(x.flip(-1)))
    torch.manual_seed(0)
    found = weighted_minmax(EoT(together, 8), x, y, Linf(0.2), FoolsAll(2))
    before, after = (FoolsAll(2).fooled(together(i), y).float().mean(0) for i in (x, found.x_adv))
    assert (after > before).all()
    assert found.weights.shape == (40, 2)


def grouped(slopes: list[float], heights: list[float]) -> tuple[nn.Module, Tensor, Tensor]:
    """Images whose second pixel says which line decides: a universal problem with linear domains."""

    class Lines(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            which = (x[:, 0, 0, 1].detach() * 10).round().long()
            margin = (x[:, 0, 0, 0] - 0.5) * torch.tensor(slopes)[which] + torch.tensor(heights)[which]
            return torch.stack([torch.zeros_like(margin), margin], 1)

    x = torch.stack([torch.tensor([[[0.5, i / 10]]]) for i in range(len(slopes))])
    return Lines(), x, torch.zeros(len(slopes), dtype=torch.long)


def test_a_universal_perturbation_fools_all_of_five_images_where_the_average_cannot() -> None:
    """Four are fooled above -0.02, -0.03, …; the fifth below -0.01. The average pulls to +0.04."""
    model, x, y = grouped([400.0] * 4 + [-200.0], [8.0, 12.0, 16.0, 20.0, -2.0])
    options: dict[str, Any] = {"steps": 200, "step_size": 0.0005}
    found = universal(model, x, y, Linf(0.04), 5, **options)
    average = universal(model, x, y, Linf(0.04), 5, strategy="average", **options)
    assert (model(found.x_adv).argmax(1) != y).all()
    assert not (model(average.x_adv).argmax(1) != y).all()
    assert found.weights.shape == (1, 5)
    assert found.weights.argmax() in (0, 4)


@threats
def test_a_universal_perturbation_is_one_and_stays_inside(threat: Threat) -> None:
    model, (x, y) = network(0), images()
    x = 0.45 + 0.1 * x if threat.name != "linf" else 0.2 + 0.6 * x  # far from 0 and 1
    found = universal(model, x, y, threat, 5)
    change = (found.x_adv - x).view(8, 5, 16)
    if threat.name == "linf":
        torch.testing.assert_close(change, change[:, :1].expand_as(change), rtol=0, atol=1e-6)
    assert threat.excess(found.x_adv, x).max() == 0
    edges, y = images()
    at_edges = universal(model, edges.round(), y, threat, 4).x_adv
    assert threat.excess(at_edges, edges.round()).max() == 0
    assert at_edges.min() >= 0
    assert at_edges.max() <= 1


def test_evaluate_keeps_the_books_of_an_attack_on_all_models() -> None:
    model, (x, y) = SideBySide([network(i) for i in range(3)]), images(60)
    criterion = FoolsAll(3)

    def attack(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return minmax(m, x, y, Linf(0.1), criterion)

    found = evaluate(model, x, y, {"minmax": attack}, Linf(0.1), criterion=criterion, checks=False)
    assert torch.equal(found.correct["clean"], ~criterion.met(model(x), y))
    assert torch.equal(found.worst, ~criterion.met(model(found.adversarials), y))
    assert found.worst.float().mean() < found.correct["clean"].float().mean()


@pytest.mark.parametrize("attack", [pgd, apgd, square])
def test_other_attacks_run_on_all_models_too(attack: Any) -> None:
    model, (x, y) = SideBySide([network(i) for i in range(2)]), images()
    options = {"queries": 100} if attack is square else {"steps": 10}
    x_adv = attack(model, x, y, Linf(0.2), FoolsAll(2), **options)
    assert FoolsAll(2).met(model(x_adv), y).float().mean() > FoolsAll(2).met(model(x), y).float().mean()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: SideBySide([network(0)]), "min-max needs at least two domains, not 1"),
        (lambda: FoolsAll(1), "min-max needs at least two domains, not 1"),
        (lambda: minmax(network(0), *images(), Linf(0.1)), "min-max needs several domains: attack SideBySide"),
        (lambda: minmax(against(), *one_image(), Linf(0.1), FoolsAll(2), gamma=-1), "gamma must be at least 0, not -1"),
        (lambda: minmax(against(), *one_image(), Linf(0.1), FoolsAll(2), steps=0), "steps must be above 0"),
        (lambda: minmax(network(0), *images(), Linf(0.1), FoolsAll(3)), r"FoolsAll\(3\) needs the logits of 3 models"),
        (lambda: SideBySide([network(0), network(1, 3)])(images()[0]), "the models have 4, 3 classes"),
        (
            lambda: apgd_t(SideBySide([network(0)] * 2), *images(), Linf(0.1), FoolsAll(2)),
            "apgd_t picks target classes",
        ),
        (lambda: universal(network(0), *images(), Linf(0.1), 1), "groups of at least two images, not 1"),
        (
            lambda: universal(network(0), *images(), Linf(0.1).within(Border()), 5),
            "whose regions differ: use no region",
        ),
        (lambda: universal(network(0), *images(), Linf(0.1), 7), "40 images are no whole number of groups of 7"),
        (lambda: minmax(against(), *one_image(), Linf(0.1), FoolsAll(2), strategy="max"), "unknown strategy 'max'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_one_line(problem: Any, message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        problem()
    assert "\n" not in str(caught.value)


@threats
def test_it_stays_inside_the_region_and_gains_there(threat: Threat) -> None:
    model, (x, y) = SideBySide([network(i) for i in range(2)]), images()
    inside = threat.within(Border())
    found = minmax(model, x, y, inside, FoolsAll(2))
    assert torch.equal(found[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])
    assert inside.excess(found, x).max() == 0
    assert not torch.equal(found, x)
    hardest = [FoolsAll(2).losses(cw_margin, model(images), y).amin(1).mean() for images in (x, found)]
    assert hardest[1] > hardest[0]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_room_or_images_nothing_moves(norm: str) -> None:
    model, (x, y) = SideBySide([network(i) for i in range(2)]), images(10)
    assert torch.equal(minmax(model, x, y, build_threat(norm, 0.0), FoolsAll(2)), x)
    assert torch.equal(universal(model, x, y, build_threat(norm, 0.0), 5).x_adv, x)
    assert minmax(model, x[:0], y[:0], build_threat(norm, 0.1), FoolsAll(2)).shape == (0, 1, 4, 4)
