"""Models that hide their gradients on purpose: `evaluate` says so, and its worst case is not taken in."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers.masked_models import THREAT, Noisy, Quantised, Saturated, trained
from trl.attacks import EoT, pgd, square
from trl.attacks.transfer import from_model
from trl.evaluation import Evaluation, evaluate

PGD = partial(pgd, threat=THREAT, steps=20)


def evaluated(model: nn.Module, **more) -> Evaluation:
    _, x, y = trained()
    return evaluate(model, x, y, {"pgd": PGD, **more}, THREAT)


def robust(found: Evaluation, name: str) -> float:
    return float(found.correct[name].float().mean())


@pytest.mark.parametrize(
    ("mask", "signs"),
    [(Quantised, {"flat", "zero gradient", "black box"}), (Saturated, {"saturated", "zero gradient", "black box"})],
)
def test_square_finds_what_a_masked_gradient_hides(mask: type[nn.Module], signs: set[str]) -> None:
    plain = trained()[0]
    truth = robust(evaluated(plain), "pgd")
    masked = evaluated(mask(plain), square=partial(square, threat=THREAT, queries=500))
    assert robust(masked, "pgd") > truth + 0.4
    assert float(masked.worst.float().mean()) <= robust(masked, "square") < truth + 0.06
    assert signs <= {sign.name for sign in masked.signs}
    assert len(masked.summary()["warnings"]) == len(masked.signs)


def test_a_transfer_that_beats_the_gradient_is_a_sign_under_any_name() -> None:
    plain = trained()[0]
    found = evaluated(Quantised(plain), elsewhere=from_model(plain, PGD))
    assert robust(found, "elsewhere") < robust(found, "pgd") - 0.4
    assert "black box" in {sign.name for sign in found.signs}


def test_eot_finds_what_noise_hides() -> None:
    plain, noisy = trained()[0], Noisy(trained()[0])
    truth = robust(evaluated(plain), "pgd")
    found = evaluated(noisy, eot=lambda model, x, y: PGD(EoT(model, 20), x, y))
    assert robust(found, "pgd") > truth + 0.3
    assert float(found.worst.float().mean()) <= robust(found, "eot") < truth + 0.06
    assert {"random", "unsteady"} <= {sign.name for sign in found.signs}


def test_an_honest_model_shows_no_sign() -> None:
    model, x, y = trained()
    assert evaluate(model, x, y, {"pgd": PGD}, THREAT).signs == []
    again = evaluate(model, x[torch.arange(300).flip(0)], y.flip(0), {"pgd": PGD}, THREAT, checks=False)
    assert again.signs == []
