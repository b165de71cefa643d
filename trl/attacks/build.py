"""An attack by its name and options, as params.yaml and the shell give it."""

from dataclasses import replace
from functools import partial
from typing import Any

from trl.attacks.base import Attack
from trl.attacks.criterion import MISCLASSIFIED, Criterion
from trl.attacks.registry import ATTACKS
from trl.threat import Threat


def build_attack(name: str, threat: Threat, criterion: Criterion = MISCLASSIFIED, **options: Any) -> Attack:
    """The attack `name` as a function (model, x, y) → x_adv; TrlError for an unknown name or unfit options."""
    attack, checked = ATTACKS.get(name), ATTACKS.check(name, options)
    if in_parts := getattr(attack, "in_parts", None):  # so that an evaluation can stop and go on between them
        return in_parts(threat, criterion, **checked)
    return partial(attack, threat=threat, criterion=criterion, **checked)


def build_attack_at(
    epsilon: float, name: str, threat: Threat, criterion: Criterion = MISCLASSIFIED, **options: Any
) -> Attack:
    """The attack that `build_attack` makes for `threat`, at another epsilon: its step size scales along."""
    if options.get("step_size") and threat.epsilon:
        options["step_size"] = options["step_size"] * epsilon / threat.epsilon or None  # 0 is no step size
    return build_attack(name, replace(threat, epsilon=epsilon), criterion, **options)
