"""Signs of gradient masking: each on a model or a result that has it, and none on an ordinary network."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.masked_models import THREAT, Noisy, Quantised, Saturated, Wrapped, robust, trained
from trl.attacks import cw, fgsm, pgd
from trl.attacks.square import square
from trl.common.errors import TrlError
from trl.evaluation.masking import check_budget, check_model, check_results
from trl.evaluation.signs import Sign
from trl.threat import L2, Linf, Threat


def names(signs: list[Sign]) -> set[str]:
    for sign in signs:
        assert "\n" not in sign.message
        assert sign.message.endswith(".")
    return {sign.name for sign in signs}


class Normal(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class StraightThrough(Wrapped):
    """Quantised, but with the identity's gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + ((x * 15).round() / 15 - x).detach())


class Detached(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


class NoGradient(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


class NaNGradient(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (x - x).sqrt().sum((1, 2, 3))[:, None]


class Probabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(1)


class LogProbabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).log_softmax(1)


class Dynamic(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + 0.1 * torch.is_grad_enabled() * (torch.arange(10) > 4))


class Batch(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(0))


class Adapting(Wrapped):
    """Every answer is a little different from the one before."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x * (1 - 0.01 * self.calls))


class Half(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (Normal, set()),
        (Quantised, {"zero gradient", "flat"}),
        (StraightThrough, {"flat"}),
        (Saturated, {"zero gradient", "saturated"}),
        (Noisy, {"random"}),
        (Detached, {"zero gradient"}),
        (NoGradient, {"zero gradient"}),
        (NaNGradient, {"zero gradient"}),
        (Probabilities, {"probabilities"}),
        (LogProbabilities, set()),
        (Dynamic, {"dynamic"}),
        (Batch, {"batch"}),
        (Adapting, {"random"}),
        (Half, set()),
    ],
)
@pytest.mark.parametrize("images", [300, 40])
def test_each_mask_has_its_signs(wrap: Callable[[nn.Module], nn.Module], expected: set[str], images: int) -> None:
    model, x, y = trained()
    assert names(check_model(wrap(model), x[:images], y[:images])) == expected


def test_dropout_and_batch_norm_are_no_signs_in_training_mode() -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)]
    model = nn.Sequential(*layers).train()
    _, x, y = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert check_model(model, x, y) == []
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_dropout_that_stays_on_is_one() -> None:
    class Stubborn(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    model, x, y = trained()
    assert names(check_model(nn.Sequential(Stubborn(), model), x, y)) == {"random"}


def test_images_on_the_edge_of_a_step_do_not_hide_it() -> None:
    model, _, y = trained()
    x = ((torch.randint(15, (len(y), 1, 8, 8), generator=torch.Generator().manual_seed(0)) + 0.5) / 15).clamp(0, 1)
    assert "flat" in names(check_model(Quantised(model), x, y))


def test_messages_say_how_much() -> None:
    model, x, y = trained()
    found = {sign.name: sign.message for sign in check_model(Saturated(model), x, y)}
    assert "ce for 100% of the images" in found["zero gradient"]
    assert "attack with the loss cw as well" in found["zero gradient"]
    assert "100% of the images the true class leads by more than 80" in found["saturated"]


def test_cost_and_what_is_seen() -> None:
    """Few, small batches, spread over all images."""
    sizes: list[int] = []
    model, x, y = trained()
    watched = Normal(model)
    watched.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    check_model(watched, x, y)
    assert sorted(sizes) == [64, *[128] * 8]
    sizes.clear()
    check_budget(watched, x, y, THREAT)
    assert len(sizes) == 49
    assert max(sizes) == 128


def test_any_storage_of_images_and_the_callers_random_numbers() -> None:
    model, x, y = trained()
    noisy, signs = Quantised(model), check_model(Quantised(model), x, y)
    assert check_model(noisy, (x * 255).round().to(torch.uint8), y.int()) == signs
    state = torch.get_rng_state()
    with torch.inference_mode():
        check_model(Noisy(model), x.clone(), y.clone())
        check_budget(Noisy(model), x.clone(), y.clone(), THREAT)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "n", "scale", "message"),
    [
        (nn.Flatten(0), 9, 1.0, "module that returns logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 9, 255.0, r"give images in \[0, 1\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 1, 1.0, "at least two"),
    ],
)
def test_what_does_not_fit(model: nn.Module, n: int, scale: float, message: str) -> None:
    _, x, y = trained()
    with pytest.raises(TrlError, match=message):
        check_model(model, x[:n] * scale, y[:n])


def test_a_model_that_answers_nan() -> None:
    _, x, y = trained()
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(broken[1].bias, math.nan)
    with pytest.raises(TrlError, match="logits are NaN"):
        check_model(broken, x, y)


# --- more steps, more epsilon


@pytest.mark.parametrize("threat", [Linf(0.05), Linf(0.2), L2(0.5)])
def test_pgd_gains_from_steps_and_epsilon_on_an_ordinary_network(threat: Threat) -> None:
    assert check_budget(*trained(), threat) == []


@pytest.mark.parametrize("mask", [Quantised, Saturated])
@pytest.mark.parametrize("threat", [THREAT, L2(0.7)])
def test_an_attack_without_bound_fails_where_gradients_are_masked(mask: type[nn.Module], threat: Threat) -> None:
    model, x, y = trained()
    assert "unbounded" in names(check_budget(mask(model), x, y, threat))


class Trap(nn.Module):
    """Class 1 beyond 0.54; between, the loss of class 0 has a maximum at 0.52 that small steps do not leave."""

    def forward(self, x: Tensor) -> Tensor:
        t = (x.flatten(1) - 0.5) / 0.1
        rise = torch.where(t < 0.2, t - 1, torch.where(t < 0.4, -0.6 - t, t))
        return torch.cat([torch.zeros_like(rise), rise], 1)


def test_more_steps_that_fool_less() -> None:
    x, y = torch.full((50, 1), 0.5), torch.zeros(50, dtype=torch.long)
    assert robust(Trap(), pgd(Trap(), x, y, Linf(0.1), steps=5, random_start=False), y) == 0
    assert "steps" in names(check_budget(Trap(), x, y, Linf(0.1)))


def test_nothing_to_attack() -> None:
    model, x, _y = trained()
    assert check_budget(model, x, (model(x).argmax(1) + 1) % 10, THREAT) == []


# --- results


def flags(n: int, *fooled: range) -> Tensor:
    correct = torch.ones(n, dtype=torch.bool)
    for part in fooled:
        correct[list(part)] = False
    return correct


CLEAN = flags(1000, range(900, 1000))  # 900 correct


@pytest.mark.parametrize(("only", "expected"), [(9, set()), (10, {"black box"})])
def test_square_beyond_the_gradient_attacks(only: int, expected: set[str]) -> None:
    correct = {
        "clean": CLEAN,
        "pgd": CLEAN & flags(1000, range(100)),
        "cw": CLEAN & flags(1000, range(50, 200)),
        "square": CLEAN & flags(1000, range(150, 200 + only)),
    }
    assert names(check_results(correct)) == expected
    assert names(check_results(correct, gradient_free=())) == set()
    if expected:
        (sign,) = check_results(correct)
        assert "square fooled 10 images (1.1%) that no gradient attack fooled (those fooled 22.2%)" in sign.message


def test_parts_of_an_ensemble_are_compared_by_what_each_fooled_itself() -> None:
    parts = {"apgd_ce": flags(1000, range(900, 1000), range(300))}
    parts["apgd_t"] = parts["apgd_ce"] & flags(1000, range(300, 310))
    parts["square"] = parts["apgd_t"] & flags(1000, range(310, 330))
    correct = {"clean": CLEAN, "autoattack": parts["square"]}
    (sign,) = check_results(correct, stages={"autoattack": parts})
    assert "square fooled 20 images" in sign.message
    assert "(those fooled 34.4%)" in sign.message
    assert check_results(correct) == []
    parts["square"] = parts["apgd_t"]
    assert check_results({**correct, "autoattack": parts["square"]}, stages={"autoattack": parts}) == []
    # what Square fooled in an ensemble, an attack outside it may fool with gradients
    parts["square"] = parts["apgd_t"] & flags(1000, range(310, 330))
    outside = {**correct, "pgd": CLEAN & flags(1000, range(320))}
    assert "square fooled 10 images" in check_results(outside, stages={"autoattack": parts})[0].message


def test_gradient_attacks_after_square_do_not_get_what_it_fooled() -> None:
    parts = {"apgd_ce": CLEAN & flags(1000, range(300))}
    parts["square"] = parts["apgd_ce"] & flags(1000, range(300, 320))
    parts["apgd_t"] = parts["square"] & flags(1000, range(320, 330))
    correct = {"clean": CLEAN, "autoattack": parts["apgd_t"]}
    assert "square fooled 20 images" in check_results(correct, stages={"autoattack": parts})[0].message


def test_one_step_beyond_many() -> None:
    results = {"clean": CLEAN, "fgsm": CLEAN & flags(1000, range(500)), "pgd": CLEAN & flags(1000, range(200))}
    (sign,) = check_results(results)
    assert sign.name == "one step"
    assert "fgsm, a single step, fooled 55.6%, but the best iterative attack only 22.2%" in sign.message
    results["cw"] = CLEAN & flags(1000, range(200, 700))
    assert check_results(results) == []


@pytest.mark.parametrize("correct", [{"clean": CLEAN}, {"clean": CLEAN, "square": flags(1000, range(999))}])
def test_nothing_to_compare(correct: dict[str, Tensor]) -> None:
    assert check_results(correct) == []
    assert check_results({name: found[:0] for name, found in correct.items()}) == []


# --- attacks on masked networks: what the signs warn of


@pytest.mark.parametrize("mask", [Quantised, Saturated])
def test_square_breaks_what_pgd_does_not(mask: type[nn.Module]) -> None:
    model, x, y = trained()
    masked = mask(model)
    torch.manual_seed(0)
    with torch.no_grad():
        attacks = {"clean": x, "pgd": pgd(masked, x, y, THREAT), "square": square(masked, x, y, THREAT, queries=500)}
        correct = {name: masked(x_adv).argmax(1) == y for name, x_adv in attacks.items()}
    blind, black_box = (float(correct[name].float().mean()) for name in ("pgd", "square"))
    plain = robust(model, pgd(model, x, y, THREAT), y)
    assert blind > plain + 0.4
    assert black_box < plain + 0.05
    assert names(check_results(correct)) == {"black box"}


def test_an_ordinary_network_has_no_signs() -> None:
    model, x, y = trained()
    torch.manual_seed(0)
    with torch.no_grad():
        attacks = {
            "clean": x,
            "fgsm": fgsm(model, x, y, THREAT),
            "pgd": pgd(model, x, y, THREAT, restarts=3),
            "cw": cw(model, x, y, THREAT, restarts=3),
            "square": square(model, x, y, THREAT, queries=500),
        }
        correct = {name: model(x_adv).argmax(1) == y for name, x_adv in attacks.items()}
    assert check_model(model, x, y) == check_budget(model, x, y, THREAT) == check_results(correct) == []
