from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.masked_models import THREAT, Noisy, trained
from trl.attacks import ATTACKS, Targeted, autoattack, build_attack, pgd
from trl.attacks.autoattack import build_autoattack
from trl.attacks.ensemble import Ensemble
from trl.common.errors import TrlError
from trl.evaluation import evaluate
from trl.threat import L1, L2, Linf, Threat


def brief(ensemble: Any, steps: int, queries: int = 0) -> Ensemble:
    """The same parts with smaller budgets: the whole ones are looked at below, not waited for."""
    less = {name: {"queries": queries} if name == "square" else {"steps": steps} for name in ensemble.parts}
    return Ensemble({name: partial(part, **less[name]) for name, part in ensemble.parts.items()})


def budgets(threat: Threat, **options: Any) -> dict[str, dict[str, Any]]:
    """The options of each part, without its threat."""
    found = {}
    for name, part in build_autoattack(threat, **options).parts.items():
        assert isinstance(part, partial)
        inner = part.args[0] if part.args else part
        assert inner.keywords["threat"] == threat
        found[name] = {
            "attack": inner.func.__name__,
            **{key: value for key, value in inner.keywords.items() if key != "threat"},
            **({"eot": True} if part.args else {}),
        }
    return found


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_standard_has_the_authors_budgets(threat: Threat) -> None:
    assert budgets(threat) == {
        "apgd_ce": {"attack": "apgd", "loss": "ce", "restarts": 1},
        "apgd_t": {"attack": "apgd_t", "targets": 9},
        "fab_t": {"attack": "fab_t", "targets": 9},
        "square": {"attack": "square", "queries": 5000, "rescale_schedule": False},
    }


def test_standard_in_l1_has_five_restarts_and_five_targets() -> None:
    found = budgets(L1(12))
    assert found["apgd_ce"]["restarts"] == 5
    assert found["apgd_t"]["targets"] == 5


def test_other_versions() -> None:
    plus = budgets(Linf(0.1), version="plus")
    assert list(plus) == ["apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"]
    assert plus["apgd_ce"]["restarts"] == plus["apgd_dlr"]["restarts"] == plus["fab"]["restarts"] == 5
    rand = budgets(L1(12), version="rand")
    assert list(rand) == ["apgd_ce", "apgd_dlr"]
    assert all(part["eot"] and part["restarts"] == 1 for part in rand.values())
    assert list(budgets(Linf(0.1), version="custom", parts=["square", "apgd_dlr"])) == ["square", "apgd_dlr"]


def test_defaults_of_the_parts_are_the_authors() -> None:
    defaults = {name: ATTACKS.check(name, {}) for name in ("apgd", "apgd_t", "fab_t", "square")}
    assert all(defaults[name]["steps"] == 100 for name in ("apgd", "apgd_t", "fab_t"))
    assert defaults["square"]["p_init"] == 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "fast"}, "version"),
        ({"version": "custom"}, "give `parts`"),
        ({"parts": ["square"]}, "give `parts` with version custom"),
        ({"version": "custom", "parts": ["nothing"]}, "parts"),
        ({"criterion": Targeted()}, "only the criterion Misclassified"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError, match=message):
        build_attack("autoattack", Linf(0.1), **options)


def test_it_is_at_least_as_strong_as_each_part_and_as_pgd() -> None:
    model, x, y = trained()
    x, y = x[:50], y[:50]
    built = build_attack("autoattack", THREAT)
    assert isinstance(built, Ensemble)
    whole = brief(built, steps=25, queries=500)
    pgd_ = partial(pgd, threat=THREAT, steps=100)
    found = evaluate(model, x, y, {"autoattack": whole, **whole.parts, "pgd": pgd_}, THREAT)
    aa = found.correct["autoattack"]
    assert 0.1 < aa.float().mean() < 0.5
    for name in (*whole.parts, "pgd"):
        assert aa.sum() <= found.correct[name].sum()
    left = [int(stage.sum()) for stage in found.stages["autoattack"].values()]
    assert left == sorted(left, reverse=True)
    assert left[-1] == aa.sum()
    torch.testing.assert_close(found.distances, THREAT.distance(found.adversarials, x))
    again = evaluate(model, found.adversarials, y, {}, Linf(0.0))
    assert torch.equal(again.worst, found.worst)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2), L1(0.7)])
def test_any_number_of_classes(classes: int, threat: Threat) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, classes))
    x = torch.rand(6, 1, 6, 6)
    y = model(x).argmax(1)

    custom = {"version": "custom", "parts": ("apgd_t", "fab_t")}
    if classes == 3 and threat == Linf(0.05):  # the function itself, once
        x_adv = autoattack(model, x, y, threat, **custom)
    else:
        x_adv = brief(build_autoattack(threat, **custom), steps=10)(model, x, y)
    assert threat.distance(x_adv, x).max() <= threat.epsilon + 1e-6


def test_rand_sees_through_noise() -> None:
    model, x, y = trained()
    noisy, x, y = Noisy(model), x[:150], y[:150]
    threat = Linf(0.1)
    parts = build_autoattack(threat, version="rand").parts
    one_draw = build_autoattack(threat, version="custom", parts=("apgd_ce",)).parts
    found = evaluate(noisy, x, y, {"rand": parts["apgd_ce"], "plain": one_draw["apgd_ce"]}, threat)
    assert found.correct["rand"].float().mean() < found.correct["plain"].float().mean() - 0.2
