"""AutoAttack, the standard attack for reporting robust accuracy (Croce & Hein, ICML 2020, arXiv 2003.01690)."""

from functools import partial
from typing import Literal

from torch import Tensor, nn

from trl.attacks.apgd import apgd, apgd_t
from trl.attacks.base import Attack
from trl.attacks.criterion import MISCLASSIFIED, Criterion, Misclassified, check_criterion
from trl.attacks.ensemble import Ensemble
from trl.attacks.eot import EoT
from trl.attacks.fab import fab, fab_t
from trl.attacks.square import square
from trl.common.errors import TrlError
from trl.nn.precision import searches_in_half
from trl.threat import Threat

Part = Literal["apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square"]
VERSIONS: dict[str, tuple[Part, ...]] = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce", "apgd_dlr"),
}
DRAWS = 20  # forward passes of a randomised model per gradient, in version rand


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    version: Literal["standard", "plus", "rand", "custom"] = "standard",
    parts: tuple[Part, ...] = (),
) -> Tensor:
    """The attacks of `version` in order, with the authors' budgets; each runs on the samples that earlier ones left.

    standard: APGD-CE, targeted APGD and targeted FAB (9 targets; 5 for APGD in ℓ1), Square with 5,000 queries.
    plus: APGD-CE and APGD-DLR, FAB (each with 5 restarts), Square, targeted APGD, targeted FAB.
    rand: APGD-CE and APGD-DLR on the mean of 20 forward passes, for models with random outputs.
    custom: `parts`, with the budgets of standard. See the package for the rest. TrlError unless the criterion is
    `Misclassified`.
    """
    return build_autoattack(threat, criterion, version=version, parts=parts)(model, x, y)


def build_autoattack(
    threat: Threat,
    criterion: Criterion = MISCLASSIFIED,
    *,
    version: Literal["standard", "plus", "rand", "custom"] = "standard",
    parts: tuple[Part, ...] = (),
) -> Ensemble:
    """`autoattack` as an ensemble; `evaluate` runs, reports and resumes its parts one by one."""
    check_criterion(criterion)
    if not isinstance(criterion, Misclassified):
        raise TrlError("autoattack supports only the criterion Misclassified(); use apgd or square for another one")
    if (version == "custom") != bool(parts):
        raise TrlError(f"autoattack version {version!r}: give `parts` with version custom, and only with it")
    l1, restarts = threat.name == "l1", 5 if version == "plus" or (threat.name == "l1" and version != "rand") else 1
    known: dict[str, Attack] = {
        "apgd_ce": partial(apgd, threat=threat, loss="ce", restarts=restarts),
        "apgd_dlr": partial(apgd, threat=threat, loss="dlr", restarts=restarts),
        "apgd_t": partial(apgd_t, threat=threat, targets=5 if l1 and version != "plus" else 9),
        "fab": partial(fab, threat=threat, restarts=5 if version == "plus" else 1),
        "fab_t": partial(fab_t, threat=threat, targets=9),
        "square": partial(square, threat=threat, queries=5000, rescale_schedule=False),
    }
    for part in parts:
        if part not in known:
            raise TrlError(f"unknown part {part!r} of autoattack; known: {', '.join(known)}")
    chosen: dict[str, Attack] = {part: known[part] for part in parts or VERSIONS[version]}
    if version == "rand":
        return Ensemble({name: partial(_expected, attack) for name, attack in chosen.items()})
    return Ensemble(chosen)


@searches_in_half
def _expected(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return attack(EoT(model, DRAWS), x, y)


# `build_attack` uses this instead
autoattack.in_parts = build_autoattack  # type: ignore[attr-defined]
