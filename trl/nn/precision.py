"""Half precision: where it is worth having, and which attacks may search in it."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, TypeVar

import torch

Precision = Literal["fp32", "bf16"]
Function = TypeVar("Function", bound=Callable[..., Any])

SIDE = {"cpu": 512, "cuda": 4096}  # of the square matrices whose product is timed
WORTHWHILE = 0.8  # share of fp32's time that a product in bf16 may take


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether `device` multiplies faster in bfloat16 than in fp32, by one product, timed once a process. Never raises.

    What a processor says of itself is no answer: with AVX512-BF16 but without AMX, bf16 takes twice as long.
    """
    return _is_fast(str(device))


def searches_in_half(attack: Function) -> Function:
    """A decorator that declares: `attack` may run under autocast to bf16, which costs it no strength.

    It looks for its images by gradients alone, which half precision gives well enough; an attack that stops at the
    decision boundary does not, since bf16 cannot place it.
    """
    attack.searches_in_half = True  # type: ignore[attr-defined]
    return attack


def may_search_in_half(attack: Callable[..., Any]) -> bool:
    """Whether the attack, perhaps with options as `build_attack` gives them, has declared so."""
    return getattr(attack.func if isinstance(attack, partial) else attack, "searches_in_half", False)


@cache
def _is_fast(name: str) -> bool:
    try:
        device = torch.device(name)
        if device.type not in SIDE:
            return False
        return _product_seconds(device, torch.bfloat16) < WORTHWHILE * _product_seconds(device, torch.float32)
    except (RuntimeError, AssertionError, ValueError):  # no such device, or one that knows no bf16
        return False


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The shortest of three, after one that loads what is needed."""
    side = SIDE[device.type]
    factor, times = torch.ones(side, side, dtype=dtype, device=device), []
    for _ in range(4):
        start = time.perf_counter()
        float((factor @ factor)[0, 0])  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])
