"""Half precision only where it was measured to be faster, and for attacks that asked for it."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from trl.attacks import ATTACKS, build_attack
from trl.nn import precision
from trl.nn.precision import has_fast_bf16, may_search_in_half, searches_in_half
from trl.threat import Linf


@pytest.fixture(autouse=True)
def _measured_anew() -> Iterator[None]:
    precision._is_fast.cache_clear()
    yield
    precision._is_fast.cache_clear()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cuda", "cuda:63", "mps", "meta", "no such device"])
def test_answers_for_any_device(device: torch.device | str) -> None:
    assert has_fast_bf16(device) in (True, False)


@pytest.mark.parametrize("device", ["meta", "no such device", "cuda:63"])
def test_no_device_no_bf16(device: str) -> None:
    assert not has_fast_bf16(device)


@pytest.mark.parametrize(("half", "fast"), [(1.0, True), (1.7, False), (2.0, False), (4.0, False)])
def test_one_measurement_decides(half: float, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[torch.dtype] = []

    def seconds(device: torch.device, dtype: torch.dtype) -> float:
        measured.append(dtype)
        return half if dtype == torch.bfloat16 else 2.0

    monkeypatch.setattr(precision, "_product_seconds", seconds)
    assert [has_fast_bf16("cpu") for _ in range(3)] == [fast] * 3
    assert measured == [torch.bfloat16, torch.float32]


def test_the_measurement_takes_time() -> None:
    assert precision._product_seconds(torch.device("cpu"), torch.float32) > 0


def test_attacks_by_gradients_have_declared_it_and_those_at_the_boundary_have_not() -> None:
    declared = {name for name in ATTACKS.names() if may_search_in_half(ATTACKS.get(name))}
    assert declared == {"fgsm", "bim", "pgd", "cw", "mim", "apgd", "apgd_t"}
    assert may_search_in_half(build_attack("pgd", Linf(0.1), steps=3))
    assert not may_search_in_half(build_attack("deepfool", Linf(0.1)))
    assert not may_search_in_half(build_attack("autoattack", Linf(0.1)))  # its parts declare it, one by one
    assert not may_search_in_half(lambda model, x, y: x)


def test_an_attack_of_ones_own_can_declare_it() -> None:
    @searches_in_half
    def attack(model: object, x: object, y: object, steps: int = 1) -> object:
        return x

    assert may_search_in_half(partial(attack, steps=3))
