"""Which attacks use no gradient, so that neither its masking nor its direction makes a difference to them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from trl.attacks.ensemble import Ensemble

Function = TypeVar("Function", bound=Callable[..., Any])


def gradient_free(attack: Function) -> Function:
    """A decorator that declares: `attack` asks for the model's outputs, never for a gradient of any model.

    An object that is called says so by an attribute `gradient_free = True`.
    """
    attack.gradient_free = True  # type: ignore[attr-defined]
    return attack


def is_gradient_free(attack: Callable[..., Any]) -> bool:
    """Whether the attack, perhaps with options as `build_attack` gives them, has declared so.

    An ensemble is so if all of its parts are.
    """
    if isinstance(attack, Ensemble):
        return all(map(is_gradient_free, attack.parts.values()))
    return getattr(attack.func if isinstance(attack, partial) else attack, "gradient_free", False)
