"""Which attacks use no gradients, so that gradient masking cannot stop them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from trl.attacks.ensemble import Ensemble

Function = TypeVar("Function", bound=Callable[..., Any])


def gradient_free(attack: Function) -> Function:
    """Decorator that marks `attack` as using the model's outputs only, never a gradient of any model.

    A callable object sets the attribute `gradient_free = True` instead.
    """
    attack.gradient_free = True  # type: ignore[attr-defined]
    return attack


def is_gradient_free(attack: Callable[..., Any]) -> bool:
    """Whether the attack is marked as gradient-free; options bound by `build_attack` make no difference.

    An ensemble is gradient-free if all of its parts are.
    """
    if isinstance(attack, Ensemble):
        return all(map(is_gradient_free, attack.parts.values()))
    return getattr(attack.func if isinstance(attack, partial) else attack, "gradient_free", False)
