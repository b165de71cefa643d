import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from trl.common.errors import TrlError
from trl.threat import L1, L2, THREATS, Linf, Threat, build_threat

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
DUAL_NORM = {"linf": 1, "l2": 2}  # the steepest unit step gains the gradient's dual norm

threats = st.builds(build_threat, st.sampled_from(sorted(THREATS)), st.floats(0, 3))
shapes = st.sampled_from([(4, 1, 8, 8), (2, 3, 32, 32), (3, 5), (1, 1, 1, 1), (2, 3, 2, 2, 2)])
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**32 - 1)


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random images, with some values at the ends of the box."""
    x = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return (x * 1.4 - 0.2).clamp(0, 1)


def assert_inside(x_adv: Tensor, x: Tensor, threat: Threat) -> None:
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv.double() - x.double()).flatten(1).norm(ORDER[threat.name], dim=1).max() <= threat.epsilon + 1e-6


@given(threats, shapes, dtypes, seeds, st.floats(0, 10))
@settings(max_examples=60, deadline=None)
def test_projection_is_inside_and_idempotent(
    threat: Threat, shape: tuple[int, ...], dtype: torch.dtype, seed: int, size: float
) -> None:
    torch.manual_seed(seed)
    x = images(shape, dtype, seed)
    x_adv = x + size * torch.randn_like(x)
    projected = threat.project(x_adv, x)
    assert_inside(projected, x, threat)
    torch.testing.assert_close(threat.project(projected, x), projected, atol=1e-6, rtol=0)
    torch.testing.assert_close(threat.around(x).project(x_adv), projected, atol=0, rtol=0)


@given(threats, shapes, dtypes, seeds)
@settings(max_examples=30, deadline=None)
def test_projection_keeps_what_is_inside(threat: Threat, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = images(shape, dtype, seed)
    noise = torch.rand_like(x) * 2 - 1
    noise *= 0.9 * threat.epsilon / x[0].numel() ** (1 / ORDER[threat.name])
    inside = (x + noise).clamp(0, 1)
    projected = threat.project(inside, x)
    torch.testing.assert_close(projected, inside, atol=1e-6 if threat.epsilon < 1e-4 else 0, rtol=0)
    assert projected.data_ptr() != inside.data_ptr()


def test_projection_moves_outside_points_to_the_boundary() -> None:
    x = torch.full((1, 4), 0.5)
    far = x + torch.tensor([[3.0, -0.1, 0.0, 4.0]])
    torch.testing.assert_close(Linf(0.2).project(far, x) - x, torch.tensor([[0.2, -0.1, 0.0, 0.2]]))
    torch.testing.assert_close(L2(0.2).project(far, x) - x, (far - x) * (0.2 / (far - x).norm()))
    torch.testing.assert_close(L1(0.6).project(far, x) - x, torch.tensor([[0.1, 0.0, 0.0, 0.5]]))  # at most to 1


def nearest_in_l1(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """Sorts all shifts at which the dual's slope changes, and solves the linear piece that holds the solution."""
    size = (x_adv - x).abs()
    room = torch.where(x_adv > x, 1 - x, x)

    def kept(shift: Tensor) -> Tensor:
        return torch.minimum((size - shift[..., None]).clamp(min=0), room)

    shifts = torch.cat([size, (size - room).clamp(min=0), torch.zeros(1)]).sort().values
    sums = kept(shifts).sum(1)
    if sums[0] <= epsilon:
        return x_adv.clamp(0, 1)
    i = int((sums > epsilon).sum()) - 1
    shift = shifts[i] + (shifts[i + 1] - shifts[i]) * (sums[i] - epsilon) / (sums[i] - sums[i + 1])
    return x + kept(shift) * (x_adv - x).sign()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 12, 300])
def test_l1_projection_is_the_nearest_point(d: int, dtype: torch.dtype) -> None:
    torch.manual_seed(d)
    x = images((60, d), torch.float64, d)
    # from all values far outside to few, as after a sparse step
    noise = torch.randn_like(x) * (torch.rand_like(x) < torch.rand(60, 1)) * 3 * torch.rand(60, 1)
    for epsilon in (1e-3, 0.3, 0.05 * d):
        expected = torch.stack([nearest_in_l1(a, b, epsilon) for a, b in zip(x + noise, x, strict=True)])
        projected = L1(epsilon).project((x + noise).to(dtype), x.to(dtype))
        torch.testing.assert_close(projected.double(), expected, rtol=0, atol=2e-6)


def test_l2_stays_in_the_ball_when_every_value_rounds_up() -> None:
    for epsilon in (0.1, 0.25, 0.5, 1.0, 2.0):
        for value in (0.5, 0.53, 0.6):
            x = torch.full((1, 3, 224, 224), value)
            assert_inside(L2(epsilon).project(x + 0.3, x), x, L2(epsilon))


@pytest.mark.parametrize("epsilon", [0.5, 12.0, 255.0])
def test_l1_stays_in_the_ball_when_every_value_rounds_up(epsilon: float) -> None:
    for value in (0.01, 0.1, 0.5, 0.53, 0.6):
        x = torch.full((1, 3, 224, 224), value)
        projected = L1(epsilon).project(x + 0.3, x)
        assert_inside(projected, x, L1(epsilon))
        assert L1(epsilon).distance(projected.double(), x.double()) > epsilon - 0.01


@given(st.sampled_from(["linf", "l2"]), shapes, dtypes, seeds, st.floats(1e-3, 2), st.sampled_from([1e-35, 1.0, 1e30]))
@settings(max_examples=40, deadline=None)
def test_ascend_is_the_best_unit_step(
    norm: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, step_size: float, scale: float
) -> None:
    torch.manual_seed(seed)
    threat, x, direction = build_threat(norm, 1.0), torch.zeros(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    step = threat.around(x).ascend(x, direction * scale, step_size)
    torch.testing.assert_close(threat.distance(step, x), torch.full((len(x),), step_size, dtype=dtype))
    gain = (step * direction).flatten(1).sum(1)
    best = step_size * direction.flatten(1).norm(DUAL_NORM[norm], dim=1)  # Hölder's inequality, with equality
    torch.testing.assert_close(gain, best, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("d", "changed"), [(1, 1), (100, 1), (101, 2), (3072, 31)])
def test_l1_ascend_moves_the_largest_percent_alike(d: int, changed: int) -> None:
    torch.manual_seed(d)
    x, gradient = torch.rand(5, d, 1), torch.randn(5, d, 1) * 1e-20
    step = L1(1.0).around(x).ascend(x, gradient, 0.7) - x
    largest = gradient.abs().topk(changed, dim=1).indices
    expected = torch.zeros_like(x).scatter_(1, largest, 0.7 / changed) * gradient.sign()
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-6)


def test_l1_ascend_passes_over_values_at_their_end() -> None:
    x, gradient = torch.tensor([[1.0, 0.0, 0.9999999, 0.0, 0.5]]), torch.tensor([[9.0, -8.0, 7.0, 2.0, 1.0]])
    assert L1(1.0).around(x).ascend(x, gradient, 0.1)[0].tolist() == pytest.approx([1.0, 0.0, 1.0, 0.1, 0.5])
    values = torch.tensor([2])
    assert L1(1.0).around(x).ascend(x, gradient, 0.1, values)[0].tolist() == pytest.approx([1.0, 0.0, 1.0, 0.05, 0.55])
    assert torch.equal(L1(1.0).around(x[:, :3]).ascend(x[:, :3], gradient[:, :3], 0.1, values), x[:, :3])


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_ascend_takes_a_step_size_per_sample(norm: str) -> None:
    torch.manual_seed(0)
    threat, x, gradient = build_threat(norm, 1.0), torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    steps = torch.tensor([0.1, 0.7])
    moved = threat.around(x).ascend(x, gradient, steps.reshape(2, 1, 1, 1))
    expected = torch.cat(
        [threat.around(x[i : i + 1]).ascend(x[i : i + 1], gradient[i : i + 1], s) for i, s in enumerate(steps.tolist())]
    )
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_ascend_without_gradient_stays(norm: str) -> None:
    x = torch.rand(2, 3, 4, 4)
    gradient = torch.zeros_like(x)
    gradient[1] = 1
    moved = build_threat(norm, 0.1).around(x).ascend(x, gradient, 0.1)
    assert torch.equal(moved[0], x[0])
    assert (moved[1] > x[1]).all()


@given(threats, shapes, dtypes, seeds)
@settings(max_examples=40, deadline=None)
def test_random_start_is_inside(threat: Threat, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = images(shape, dtype, seed)
    start = threat.random_start(x)
    assert_inside(start, x, threat)
    if threat.epsilon > 0.01 and x.numel() > 10:  # a single value can be clamped to the same end twice
        assert not torch.equal(start, x)
        assert not torch.equal(start, threat.random_start(x))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_random_start_does_not_depend_on_the_layout(norm: str) -> None:
    x, threat, starts = torch.rand(4, 3, 5, 5), build_threat(norm, 0.3), []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(3)
        starts.append(threat.random_start(x.to(memory_format=layout)))
        assert starts[-1].is_contiguous(memory_format=layout)
    torch.testing.assert_close(*starts)


def test_linf_random_start_is_uniform_in_every_value() -> None:
    torch.manual_seed(0)
    x = torch.full((2000, 1, 2, 2), 0.5)
    noise = (Linf(0.3).random_start(x) - x).flatten(1).numpy()
    for column in noise.T:
        assert stats.kstest(column, stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-3
    off_diagonal = np.corrcoef(noise.T) - np.eye(4)
    assert np.abs(off_diagonal).max() < 0.1


def test_l2_random_start_is_uniform_in_the_ball() -> None:
    torch.manual_seed(0)
    x = torch.full((4000, 3), 0.5)
    noise = L2(0.4).random_start(x) - x
    volume = (noise.norm(dim=1) / 0.4) ** 3  # share of the ball within each radius
    assert stats.kstest(volume.numpy(), stats.uniform().cdf).pvalue > 1e-3
    # on a sphere in three dimensions every coordinate is uniform (Archimedes)
    directions = (noise / noise.norm(dim=1, keepdim=True)).numpy()
    for column in directions.T:
        assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_l1_random_start_is_uniform_in_the_ball() -> None:
    torch.manual_seed(0)
    x = torch.full((4000, 3), 0.5)
    noise = L1(0.4).random_start(x) - x
    volume = (noise.abs().sum(1) / 0.4) ** 3  # share of the ball within each radius
    assert stats.kstest(volume.numpy(), stats.uniform().cdf).pvalue > 1e-3
    # of three parts of a whole at random, each is above t with probability (1 - t)²
    parts = (noise / noise.abs().sum(1, keepdim=True)).numpy()
    for column in parts.T:
        assert stats.kstest((1 - np.abs(column)) ** 2, stats.uniform().cdf).pvalue > 1e-3
        assert abs((column > 0).mean() - 0.5) < 0.03


@pytest.mark.parametrize("name", THREATS)
@pytest.mark.parametrize("epsilon", [0.0, 0.03, 3.0, 100.0])
def test_rounding_is_no_excess_and_more_is(name: str, epsilon: float) -> None:
    x = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    threat, change = build_threat(name, epsilon), torch.ones_like(x, dtype=torch.float64)
    change *= epsilon / build_threat(name, 0.0).distance(change[:1], 0 * change[:1])
    rounded = ((x + change).float() - 0.5) / 0.25 * 0.25 + 0.5  # as by a normalisation, there and back
    assert not threat.excess(rounded, x).any()
    assert (threat.excess(x + change * 1.01 + 1e-4, x) > 0).all()
    assert threat.excess(torch.full_like(x, torch.nan), x).isnan().all()


def test_distance() -> None:
    x = torch.zeros(2, 1, 1, 2)
    x_adv = torch.tensor([[3.0, -4.0], [0.0, 1.0]]).reshape(2, 1, 1, 2)
    assert Linf(1.0).distance(x_adv, x).tolist() == [4.0, 1.0]
    assert L2(1.0).distance(x_adv, x).tolist() == [5.0, 1.0]
    assert L1(1.0).distance(x_adv, x).tolist() == [7.0, 1.0]


@pytest.mark.parametrize("norm", sorted(THREATS))
@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf, "0.1", None])
def test_bad_epsilon(norm: str, epsilon: float) -> None:
    with pytest.raises(TrlError, match="epsilon must be a finite number"):
        build_threat(norm, epsilon)


def test_build_threat() -> None:
    assert build_threat("linf", 8 / 255) == Linf(8 / 255)
    assert build_threat("l2", 0.5) == L2(0.5)
    assert Linf(0.5) != L2(0.5)
    assert build_threat("l1", 12.0) == L1(12.0)
    assert (Linf(0.5).name, L2(0.5).name, L1(0.5).name) == ("linf", "l2", "l1")
    with pytest.raises(TrlError, match="unknown norm 'l0'; known: linf, l2, l1"):
        build_threat("l0", 0.5)
