"""Half precision: where it is faster, and which attacks may search in it."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, TypeVar

import torch

Precision = Literal["fp32", "bf16"]
Function = TypeVar("Function", bound=Callable[..., Any])

SIDE = {"cpu": 512, "cuda": 4096}  # side of the square matrices whose product is timed
WORTHWHILE = 0.8  # bf16 must take at most this fraction of the time of fp32


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether `device` multiplies matrices faster in bfloat16 than in fp32; measured once per process. Never raises.

    Reported CPU features are not enough: with AVX512-BF16 but without AMX, bf16 takes twice as long.
    """
    return _is_fast(str(device))


def searches_in_half(attack: Function) -> Function:
    """Decorator that marks `attack` as no weaker under autocast to bf16.

    That holds for attacks that only follow gradients, but not for attacks that stop at the decision boundary, which
    bf16 cannot locate.
    """
    attack.searches_in_half = True  # type: ignore[attr-defined]
    return attack


def may_search_in_half(attack: Callable[..., Any]) -> bool:
    """Whether the attack is marked by `searches_in_half`; options bound by `build_attack` make no difference."""
    return getattr(attack.func if isinstance(attack, partial) else attack, "searches_in_half", False)


@cache
def _is_fast(name: str) -> bool:
    try:
        device = torch.device(name)
        if device.type not in SIDE:
            return False
        return _product_seconds(device, torch.bfloat16) < WORTHWHILE * _product_seconds(device, torch.float32)
    except (RuntimeError, AssertionError, ValueError):  # no such device, or no support for bf16
        return False


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The shortest of three timings, after one warm-up."""
    side = SIDE[device.type]
    factor, times = torch.ones(side, side, dtype=dtype, device=device), []
    for _ in range(4):
        start = time.perf_counter()
        float((factor @ factor)[0, 0])  # synchronises with the device
        times.append(time.perf_counter() - start)
    return min(times[1:])
