"""Which attacks say that they use no gradient, in every form in which an evaluation is given them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import ATTACKS, Misclassified, Undetected, build_attack
from trl.attacks.criterion import Both
from trl.attacks.ensemble import Ensemble
from trl.attacks.gradient_free import gradient_free, is_gradient_free
from trl.detectors import build_detector
from trl.models import build_model
from trl.threat import Linf

THREAT = Linf(0.1)


class Yours:
    gradient_free = True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("name", ATTACKS.names())
def test_square_alone_does(name: str) -> None:
    assert is_gradient_free(build_attack(name, THREAT)) == (name == "square")


def test_an_attack_of_yours() -> None:
    def yours(model: nn.Module, x: Tensor, y: Tensor, threat: Linf) -> Tensor:
        return x

    assert not is_gradient_free(lambda model, x, y: x)
    assert not is_gradient_free(partial(yours, threat=THREAT))
    assert is_gradient_free(partial(gradient_free(yours), threat=THREAT))
    assert is_gradient_free(Yours())


def test_an_ensemble_if_all_of_its_parts_do() -> None:
    square, pgd = (build_attack(name, THREAT) for name in ("square", "pgd"))
    assert is_gradient_free(Ensemble({"first": square, "second": Yours()}))
    assert not is_gradient_free(Ensemble({"first": square, "second": pgd}))


def test_two_strategies_are_the_same_to_it() -> None:
    torch.manual_seed(0)
    model = build_model("mlp", 3, (1, 4, 4), width=8, depth=1).eval()
    x, y = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
    detector = build_detector("energy").fit(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    undetected, found = Undetected(detector, detector.score(model(x)).median().item()), []
    for strategy in ("selective", "orthogonal"):
        attack = build_attack("square", THREAT, Both(Misclassified(), undetected, strategy), queries=30)
        torch.manual_seed(0)
        found.append(attack(model, x, y))
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)
