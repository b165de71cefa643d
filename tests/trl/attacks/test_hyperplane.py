"""Steps to a hyperplane inside the box, against solutions by sorting, and what makes a step the smallest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from trl.attacks import hyperplane
from trl.attacks.hyperplane import step_to_hyperplane
from trl.common.errors import TrlError
from trl.threat import length

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def solved(x: np.ndarray, normal: np.ndarray, value: float, norm: str) -> np.ndarray:
    """One point's step, by going through the values in the order in which the box stops them."""
    direction = -np.sign(value) * normal
    room = np.where(direction > 0, 1 - x, x)
    weight, left, step = np.abs(normal), abs(value), np.zeros_like(x)
    used = np.flatnonzero(weight)
    if (weight * room).sum() <= left:
        step[used] = room[used]
    elif norm == "l1":
        for i in used[np.argsort(-weight[used])]:
            step[i] = min(room[i], left / weight[i])
            left = max(0.0, left - weight[i] * step[i])
    else:
        speed = np.ones_like(x) if norm == "linf" else weight
        order = used[np.argsort(room[used] / speed[used])]
        for k, i in enumerate(order):  # those before k are at the end of their room
            level = left / (weight * speed)[order[k:]].sum()
            if level * speed[i] <= room[i]:
                step[order[k:]] = level * speed[order[k:]]
                break
            step[i] = room[i]
            left -= weight[i] * room[i]
    return np.sign(direction) * step


def problem(seed: int, d: int, scale: float, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points on faces of the box and inside, normals with zeros and of unlike sizes, values of both signs."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(7, d, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    normal = torch.randn(7, d, generator=generator, dtype=torch.float64)
    normal *= (spread * torch.randn(7, d, generator=generator, dtype=torch.float64)).exp()
    normal *= torch.rand(7, d, generator=generator) > 0.2
    normal[0] = 0
    reach = (normal.abs() * torch.where(normal > 0, x, 1 - x)).sum(1)
    value = scale * reach * torch.randn(7, generator=generator, dtype=torch.float64)
    value[1] = 0
    return x, normal, value


@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    seed=st.integers(0, 2**31),
    d=st.integers(1, 60),
    scale=st.floats(1e-3, 2),
    spread=st.floats(0, 4),
)
@settings(max_examples=200)
def test_it_is_the_solution_by_sorting(norm: str, seed: int, d: int, scale: float, spread: float) -> None:
    x, normal, value = problem(seed, d, scale, spread)
    step = step_to_hyperplane(x, normal, value, norm)
    expected = [solved(*row, norm) for row in zip(x.numpy(), normal.numpy(), value.tolist(), strict=True)]
    torch.testing.assert_close(step, torch.from_numpy(np.stack(expected)), rtol=1e-9, atol=1e-9)


@norms
def test_no_other_step_is_smaller(norm: str) -> None:
    """Against a linear program for linf and l1, and random steps onto the hyperplane for l2."""
    x, normal, value = problem(0, 8, 0.4, 0.5)
    step = step_to_hyperplane(x, normal, value, norm)
    reach = torch.where(value > 0, (normal * x).where(normal > 0, -normal * (1 - x)).sum(1), 0 * value)
    reach = torch.where(value < 0, (normal * (1 - x)).where(normal > 0, -normal * x).sum(1), reach)
    assert (value.abs() < reach).sum() > 3  # the hyperplane meets the box
    for i in range(2, 7):
        if value[i].abs() >= reach[i]:
            continue
        size = length(step[i : i + 1], norm).item()
        assert ((normal[i] * step[i]).sum() + value[i]).abs() < 1e-12
        if norm == "l2":
            best = optimize.minimize(
                lambda d: (d**2).sum(),
                np.zeros(8),
                bounds=list(zip((-x[i]).tolist(), (1 - x[i]).tolist(), strict=True)),
                constraints={"type": "eq", "fun": lambda d, i=i: d @ normal[i].numpy() + value[i].item()},
                tol=1e-14,
            )
            assert size == pytest.approx(best.fun**0.5, rel=1e-5)
            continue
        # d = rise - fall, and for linf a bound on both
        n, row = 8, np.concatenate([normal[i].numpy(), -normal[i].numpy(), [0.0]])
        cost = np.concatenate([np.full(2 * n, norm == "l1"), [norm == "linf"]]).astype(float)
        bound = np.hstack([np.eye(2 * n), -np.ones((2 * n, 1))]) if norm == "linf" else None
        best = optimize.linprog(
            cost,
            A_ub=bound,
            b_ub=None if bound is None else np.zeros(2 * n),
            A_eq=row[None],
            b_eq=[-value[i].item()],
            bounds=[(0, v) for v in (1 - x[i]).tolist()] + [(0, v) for v in x[i].tolist()] + [(0, None)],
        )
        assert size == pytest.approx(best.fun, rel=1e-7)


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_in_blocks_and_any_layout(norm: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, normal, value = torch.rand(11, 3, 5, 6).to(dtype), torch.randn(11, 3, 5, 6).to(dtype), torch.randn(11).to(dtype)
    flat = step_to_hyperplane(x.flatten(1), normal.flatten(1), value, norm)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    last = torch.channels_last
    torch.testing.assert_close(step_to_hyperplane(x, normal, value, norm).flatten(1), flat, **tolerance)
    step = step_to_hyperplane(x.to(memory_format=last), normal.to(memory_format=last), value, norm)
    torch.testing.assert_close(step.flatten(1), flat, **tolerance)
    monkeypatch.setattr(hyperplane, "BLOCK", 200)
    torch.testing.assert_close(step_to_hyperplane(x, normal, value, norm).flatten(1), flat, **tolerance)
    assert ((normal * flat.view_as(x)).sum((1, 2, 3)) + value).abs().max() < 1e-4


@norms
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_float32_normals_of_any_size(norm: str, size: float) -> None:
    x, normal, value = problem(3, 20, 0.3, 1.0)
    expected = step_to_hyperplane(x, normal, value, norm)
    step = step_to_hyperplane(x.float(), (normal * size).float(), (value * size).float(), norm)
    torch.testing.assert_close(step, expected.float(), rtol=1e-4, atol=1e-6)


@norms
def test_values_without_a_number_stay_in_the_box(norm: str) -> None:
    x, normal, _ = problem(4, 20, 0.3, 1.0)
    value = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf, 1e300, -1e300, 5.0]).double()
    step = step_to_hyperplane(x, normal, value, norm)
    assert torch.equal(step[1], torch.zeros(20).double())
    assert (x + step).min() >= 0
    assert (x + step).max() <= 1
    corner = torch.where(normal[2] > 0, -x[2], 1 - x[2]).where(normal[2] != 0, 0.0)
    torch.testing.assert_close(step[2], corner)


def test_unknown_norm() -> None:
    with pytest.raises(TrlError, match="unknown norm 'l0' for a step to a hyperplane; use linf, l2, l1"):
        step_to_hyperplane(torch.rand(2, 3), torch.rand(2, 3), torch.rand(2), "l0")
