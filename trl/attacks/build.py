"""Build an attack from a name and options, as in params.yaml or on the command line."""

from dataclasses import replace
from functools import partial
from typing import Any

from trl.attacks.base import Attack
from trl.attacks.criterion import MISCLASSIFIED, Criterion
from trl.attacks.registry import ATTACKS
from trl.threat import Threat


def build_attack(name: str, threat: Threat, criterion: Criterion = MISCLASSIFIED, **options: Any) -> Attack:
    """The attack `name` as a function (model, x, y) → x_adv; TrlError for an unknown name or invalid options."""
    attack, checked = ATTACKS.get(name), ATTACKS.check(name, options)
    if in_parts := getattr(attack, "in_parts", None):  # lets an evaluation stop and resume between parts
        return in_parts(threat, criterion, **checked)
    return partial(attack, threat=threat, criterion=criterion, **checked)


def build_attack_at(
    epsilon: float, name: str, threat: Threat, criterion: Criterion = MISCLASSIFIED, **options: Any
) -> Attack:
    """The attack that `build_attack` makes for `threat`, at another epsilon; its step size is scaled with epsilon."""
    if options.get("step_size") and threat.epsilon:
        options["step_size"] = options["step_size"] * epsilon / threat.epsilon or None  # a step size of 0 is invalid
    return build_attack(name, replace(threat, epsilon=epsilon), criterion, **options)
