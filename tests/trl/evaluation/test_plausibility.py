"""Signs that an evaluation is not the one that was meant."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.module_kinds import data, plain
from trl.attacks import build_attack
from trl.attacks.ensemble import Ensemble
from trl.attacks.pgd import pgd
from trl.common.errors import TrlError
from trl.evaluation import evaluate
from trl.evaluation.plausibility import check_accuracy, check_setting
from trl.threat import L1, L2, Linf, Threat


def signs(x: Tensor | None = None, threat: Threat | None = None, **options: float) -> list[str]:
    threat = threat or Linf(0.1)
    attacks = {"pgd": build_attack("pgd", threat, **options)}
    return [sign.name for sign in check_setting(plain(), data()[0] if x is None else x, attacks, threat)]


@pytest.mark.parametrize(
    ("step", "seen"), [(None, []), (0.01, []), (0.2, []), (0.21, ["step size"]), (2, ["step size"])]
)
def test_a_step_above_twice_epsilon(step: float | None, seen: list[str]) -> None:
    assert signs(step_size=step) == seen


def test_steps_of_parts_and_of_other_attacks() -> None:
    threat = Linf(0.1)
    attacks = {
        "both": Ensemble({"far": partial(pgd, threat=threat, step_size=1.0), "near": partial(pgd, threat=threat)}),
        "adam": build_attack("cw_l2", L2(0.001), step_size=0.01),  # no length in the threat's norm
        "own": lambda model, x, y: x,
    }
    (sign,) = check_setting(plain(), data()[0], attacks, threat)
    assert sign.message.startswith("both/far takes steps of 1 at epsilon 0.1: ")


@pytest.mark.parametrize(
    ("threat", "seen"),
    [
        *((Linf(0.99), []), (Linf(1.0), ["epsilon"]), (Linf(8), ["epsilon"])),
        *((L2(7.9), []), (L2(8.0), ["epsilon"]), (L1(63.9), []), (L1(64.0), ["epsilon"])),  # of 64 pixels
    ],
)
def test_an_epsilon_that_spans_everything(threat: Threat, seen: list[str]) -> None:
    assert signs(threat=threat) == seen


def test_the_message_names_the_other_scale() -> None:
    (sign,) = check_setting(plain(), data()[0], {}, Linf(8))
    assert "8/255" in sign.message


@pytest.mark.parametrize(
    ("x", "seen"),
    [
        (data()[0], []),
        (data()[0] / 255, []),
        (data()[0] / 255 / 255, ["dark"]),
        ((data()[0] > 127).to(torch.uint8), ["dark"]),
        ((data()[0] > 127).float(), []),
    ],
)
def test_images_divided_twice(x: Tensor, seen: list[str]) -> None:
    assert signs(x) == seen


@pytest.mark.parametrize(
    ("right", "n", "classes", "seen"),
    [
        (100, 1000, 10, 1),
        (118, 1000, 10, 1),
        (120, 1000, 10, 0),
        (0, 20, 2, 1),
        (19, 19, 2, 0),
        (14, 20, 2, 0),
        (11, 20, 2, 1),
    ],
)
def test_clean_accuracy_of_a_guess(right: int, n: int, classes: int, seen: int) -> None:
    assert len(check_accuracy(torch.arange(n) < right, classes)) == seen


def test_a_model_that_is_worse_than_guessing_is_not_said_to_guess() -> None:
    (sign,) = check_accuracy(torch.zeros(1000, dtype=torch.bool), 10)
    assert "0.0% of 1000 images correctly, no better than guessing among 10 classes (10.0% on average)" in sign.message


def test_evaluate_says_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()
    found = evaluate(plain(), x, (y + 1) % 3, {"pgd": build_attack("pgd", Linf(2), steps=1)}, Linf(2))
    assert [sign.name for sign in found.signs][:2] == ["epsilon", "chance"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[:2] for line in said[:2]] == [["warning", " epsilon"], ["warning", " chance"]]
    assert evaluate(plain(), x, (y + 1) % 3, {}, Linf(2), checks=False).signs == []


def test_images_of_0_to_255_as_floats() -> None:
    x, y = data()
    with pytest.raises(TrlError, match=r"pixels lie in \[\d+, \d+\]: give images in \[0, 1\], such as x / 255"):
        evaluate(plain(), x.float(), y, {}, Linf(0.1))
    with pytest.raises(TrlError, match="before normalisation"):
        evaluate(plain(), x / 127.5 - 1, y, {}, Linf(0.1))


def test_the_callers_images_are_left_alone() -> None:
    class Scribbles(nn.Module):
        """Only while it is under attack, so that no trial shows it."""

        def __init__(self) -> None:
            super().__init__()
            self.net = plain()

        def forward(self, x: Tensor) -> Tensor:
            logits = self.net(x)
            if len(x) > 2:
                x.zero_()
            return logits

    x, y = data()
    x = (x / 255).requires_grad_()
    before = x.detach().clone()
    with pytest.raises(TrlError, match="modifies its input"):
        evaluate(Scribbles(), x, y, {}, Linf(0.1))
    assert torch.equal(x, before)
    found = evaluate(plain(), x, y, {"pgd": build_attack("pgd", Linf(0.1))}, Linf(0.1))
    assert not found.adversarials.requires_grad
    assert not found.distances.requires_grad
    assert torch.equal(x, before)
