import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.tiny_models import Net, Threshold, gradient_sign, images, noise, shift
from trl.attacks import build_attack, pgd
from trl.attacks.ensemble import Ensemble
from trl.common.errors import TrlError
from trl.evaluation import attack_all, epsilon_curve, evaluate
from trl.evaluation.run import survivors
from trl.threat import L2, Linf


def pixels(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_books_by_hand() -> None:
    x, y = pixels(0.1, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 0])
    found = evaluate(Threshold(), x, y, {"up": shift(0.1), "down": shift(-0.1)}, Linf(0.1))
    assert list(found.correct) == ["clean", "up", "down"]
    assert found.correct["clean"].tolist() == [True, True, True, False]
    assert found.correct["up"].tolist() == [True, False, True, False]
    assert found.correct["down"].tolist() == [True, True, False, False]
    assert found.worst.tolist() == [True, False, False, False]
    # the last attack's where none fools, else the first that does; a mistake without any attack is left alone
    torch.testing.assert_close(found.adversarials, pixels(0.0, 0.55, 0.45, 0.9))
    torch.testing.assert_close(found.distances, torch.tensor([0.1, 0.1, 0.1, 0.0]))


def test_a_misclassified_image_that_an_attack_mends_is_not_robust() -> None:
    x, y = pixels(0.55, 0.1), torch.tensor([0, 0])
    found = evaluate(Threshold(), x, y, {"down": shift(-0.1)}, Linf(0.1))
    assert found.correct["down"].tolist() == found.worst.tolist() == [False, True]
    torch.testing.assert_close(found.adversarials, pixels(0.55, 0.0))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 50), epsilon=st.floats(0, 0.5), batch_size=st.sampled_from([1, 3, 16, 257]))
def test_worst_case_invariants(seed: int, epsilon: float, batch_size: int) -> None:
    model, (x, y) = Net(seed), images(20, seed)
    attacks = {"sign": gradient_sign(epsilon), "noise": noise(epsilon), "up": shift(epsilon)}
    found = evaluate(model, x, y, attacks, Linf(epsilon), batch_size, seed)
    clean = model.eval()(x / 255).argmax(1) == y
    assert torch.equal(found.correct["clean"], clean)
    expected = clean.clone()
    for name in attacks:
        assert not (found.correct[name] & ~clean).any()
        assert not (found.worst & ~found.correct[name]).any()
        expected &= found.correct[name]
    assert torch.equal(found.worst, expected)
    assert found.adversarials.dtype == torch.float32
    assert found.adversarials.shape == x.shape
    assert Linf(epsilon).distance(found.adversarials, x / 255).max() <= epsilon + 1e-5
    again = evaluate(model, found.adversarials, y, {}, Linf(0.0))
    assert torch.equal(again.correct["clean"], found.worst)


def test_a_log_shows_the_running_accuracies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trl.common.progress.LOG_SECONDS", 0.0)
    x, y = pixels(0.1, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 0])
    evaluate(Threshold(), x, y, {"up": shift(0.1), "n": shift(-0.1)}, Linf(0.1), batch_size=2)
    assert capsys.readouterr().out.splitlines() == [
        "evaluate: 2/12 images  clean 100.00%",
        "evaluate: 4/12 images  clean 75.00%",
        "evaluate: 5/12 images  attack up  robust 75.00%  forwards 0",
        "evaluate: 7/12 images  attack up  robust 50.00%  forwards 0",
        "evaluate: 8/12 images  attack up  robust 50.00%  forwards 0",
        "evaluate: 9/12 images  attack n  robust 75.00%  forwards 0",
        "evaluate: 11/12 images  attack n  robust 75.00%  forwards 0",
        "evaluate: 12/12 images  attack n  robust 50.00%  forwards 0",
    ]


def counted(sizes: list[int], attack):
    """`attack`, noting how many images it was given."""

    def count(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        return attack(model, x, y)

    return count


def test_attacks_get_what_is_left_and_an_ensemble_drops_what_it_fooled() -> None:
    x, y = pixels(0.1, 0.45, 0.55, 0.9, 0.35), torch.tensor([0, 0, 1, 0, 0])
    sizes: dict[str, list[int]] = {"up": [], "down": [], "part": [], "last": []}
    attacks = {
        "up": counted(sizes["up"], shift(0.1)),
        "both": Ensemble({"down": counted(sizes["down"], shift(-0.1)), "up": counted(sizes["part"], shift(0.2))}),
        "last": counted(sizes["last"], shift(-0.1)),
    }
    found = evaluate(Threshold(), x, y, attacks, Linf(0.2), batch_size=3)
    assert sizes == {"up": [3, 1], "down": [3, 1], "part": [3], "last": [3, 1]}
    assert list(found.stages) == ["both"]
    assert found.stages["both"]["down"].tolist() == [True, True, False, False, True]
    assert found.stages["both"]["up"].tolist() == [True, False, False, False, False]
    assert torch.equal(found.correct["both"], found.stages["both"]["up"])
    assert list(found.costs) == ["up", "both/down", "both/up", "last"]
    assert found.summary()["stages"]["both"]["down"]["accuracy"] == 0.6
    for size in sizes.values():
        size.clear()
    less = evaluate(Threshold(), x, y, attacks, Linf(0.2), batch_size=3, cumulative=True)
    assert sizes == {"up": [3, 1], "down": [3], "part": [2], "last": [1]}
    assert torch.equal(less.worst, found.worst)
    assert less.correct["both"].tolist() == [True, False, False, False, False]
    torch.testing.assert_close(less.adversarials, found.adversarials)


def test_names_with_a_slash_and_those_of_the_summary_within_an_ensemble() -> None:
    x, y = pixels(0.1, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 0])
    attacks = {
        "a/b": shift(0.1),
        "a": Ensemble({"clean": shift(-0.1), "worst": shift(0.0)}),
        "pgd:step=1/2": shift(0.0),
    }
    found = evaluate(Threshold(), x, y, attacks, Linf(0.1))
    assert found.correct["a/b"].tolist() == [True, False, True, False]
    assert found.correct["a"].tolist() == [True, True, False, False]
    assert found.correct["clean"].tolist() == [True, True, True, False]
    assert list(found.costs) == ["a/b", "a/clean", "a/worst", "pgd:step=1/2"]


def test_one_image_is_enough() -> None:
    found = evaluate(Threshold(), pixels(0.45), torch.tensor([0]), {"up": shift(0.1)}, Linf(0.1))
    assert found.correct["up"].tolist() == [False]
    assert found.signs == []


def test_costs_count_images_through_the_model() -> None:
    x, y = images()
    n = int((Net().eval()(x / 255).argmax(1) == y).sum())
    attacks = {
        "pgd": partial(pgd, threat=Linf(0.1), steps=5),
        "shift": shift(0.1),
        "two": Ensemble({"sign": gradient_sign(0.1)}),
    }
    found = evaluate(Net(), x, y, attacks, Linf(0.1), batch_size=7)
    counts = {name: (cost.forwards, cost.backwards) for name, cost in found.costs.items()}
    assert counts == {"pgd": (5 * n, 5 * n), "shift": (0, 0), "two/sign": (n, n)}
    assert found.summary()["cost"]["pgd"] == {"forwards": 5 * n, "backwards": 5 * n, "precision": "fp32"}
    assert all(cost.seconds >= 0 for cost in found.costs.values())


def test_attack_all_attacks_every_image_also_a_misclassified_one() -> None:
    x, y = pixels(0.1, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 0])
    assert torch.equal(attack_all(Threshold(), x, y, shift(0.1), Linf(0.1), batch_size=3), (x + 0.1).clamp(max=1))
    with pytest.raises(TrlError, match="leaves the linf ball"):
        attack_all(Threshold(), x, y, shift(0.2), Linf(0.1))


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + torch.randn_like(logits)


def test_of_a_model_that_answers_at_random_the_images_are_not_called_the_worst_case() -> None:
    (x, y), attacks = images(), {"sign": gradient_sign(0.1)}
    found = evaluate(Noisy(), x, y, attacks, Linf(0.1), batch_size=20)
    assert list(found.caveats) == ["random", "unsteady"]
    assert "are random, so images and figures reflect one draw, not the worst case" in found.caveats["unsteady"]
    assert any(found.caveats["unsteady"] in warning for warning in found.summary()["warnings"])
    assert evaluate(Net(), x, y, attacks, Linf(0.1), batch_size=20).caveats == {}


def test_so_it_is_where_the_same_draw_comes_again() -> None:
    """One batch is judged a second time with the same random numbers, and no verdict changes."""
    x, y = images()
    found = evaluate(Noisy(), x, y, {}, Linf(0.1))
    assert found.caveats == {}  # without an attack nothing is looked for
    found = evaluate(Noisy(), x, y, {"none": shift(0.0)}, Linf(0.1))
    assert "not the worst case" in found.caveats["unsteady"]


def test_a_model_that_answers_at_random_is_judged_the_same_twice() -> None:
    x, y = images()
    first, second = (evaluate(Noisy(), x, y, {"sign": gradient_sign(0.1)}, Linf(0.1)) for _ in range(2))
    assert torch.equal(first.correct["clean"], second.correct["clean"])
    assert torch.equal(first.worst, second.worst)


def test_epsilon_zero_is_clean_accuracy_and_a_large_one_is_not() -> None:
    model, (x, y) = Net(), images()
    none = evaluate(model, x, y, {"sign": gradient_sign(0.0), "noise": noise(0.0)}, Linf(0.0))
    assert torch.equal(none.worst, none.correct["clean"])
    assert 0.6 < none.worst.float().mean() < 0.95
    assert torch.equal(none.adversarials, x / 255)
    much = evaluate(model, x, y, {"sign": gradient_sign(0.5)}, Linf(0.5))
    assert much.worst.float().mean() < 0.5


def test_attacks_do_not_depend_on_one_another() -> None:
    model, (x, y) = Net(), images()
    a, b = noise(0.4), noise(0.4)
    both = evaluate(model, x, y, {"a": a, "b": b}, Linf(0.4), 7)
    turned = evaluate(model, x, y, {"b": b, "a": a}, Linf(0.4), 7)
    alone = evaluate(model, x, y, {"b": b}, Linf(0.4), 7)
    assert torch.equal(both.correct["a"], turned.correct["a"])
    assert torch.equal(both.correct["b"], turned.correct["b"])
    assert torch.equal(both.correct["b"], alone.correct["b"])
    other_seed = evaluate(model, x, y, {"b": b}, Linf(0.4), 7, seed=1)
    assert not torch.equal(alone.adversarials, other_seed.adversarials)
    other_name = evaluate(model, x, y, {"a": b}, Linf(0.4), 7)
    assert not torch.equal(alone.adversarials, other_name.adversarials)
    grey = torch.full((14, 3, 2, 2), 0.5)
    batches = evaluate(model, grey, y[:14], {"b": b}, Linf(0.4), 7).adversarials.split(7)
    assert not torch.allclose(*batches, atol=1e-3)  # each batch draws anew


def test_randomness_is_the_callers_no_more_than_ours() -> None:
    model, (x, y) = Net(), images()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = evaluate(model, x, y, {"noise": noise(0.3)}, Linf(0.3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = evaluate(model, x, y, {"noise": noise(0.3)}, Linf(0.3))
    assert torch.equal(first.adversarials, second.adversarials)


@pytest.mark.parametrize("batch_size", [1, 3, 257])
def test_batch_size_does_not_matter_to_a_deterministic_attack(batch_size: int) -> None:
    model, (x, y) = Net(), images()
    attacks = {"sign": gradient_sign(0.1), "up": shift(0.05)}
    expected = evaluate(model, x, y, attacks, Linf(0.1), batch_size=20)
    found = evaluate(model, x, y, attacks, Linf(0.1), batch_size)
    assert 0 < expected.worst.sum() < expected.correct["clean"].sum()
    assert all(torch.equal(found.correct[name], expected.correct[name]) for name in expected.correct)
    torch.testing.assert_close(found.adversarials, expected.adversarials)


def test_storage_of_images_and_labels_does_not_matter() -> None:
    model, (x, y) = Net(), images()
    attacks = {"sign": gradient_sign(0.1)}
    expected = evaluate(model, x, y, attacks, Linf(0.1))
    for images_, labels in ((x / 255, y), (x.double() / 255, y.int()), (x, y.to(torch.uint8))):
        found = evaluate(model, images_, labels, attacks, Linf(0.1))
        assert torch.equal(found.worst, expected.worst)
        torch.testing.assert_close(found.adversarials, expected.adversarials)


def test_an_attack_that_works_in_place_harms_nobody() -> None:
    def in_place(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        y.zero_()
        return x.add_(0.1).clamp_(0, 1)

    x, y = pixels(0.1, 0.45, 0.55, 0.9), torch.tensor([0, 0, 1, 0])
    before = x.clone()
    found = evaluate(Threshold(), x, y, {"in place": in_place, "up": shift(0.1)}, Linf(0.1))
    assert torch.equal(x, before)
    assert y.tolist() == [0, 0, 1, 0]
    assert torch.equal(found.correct["in place"], found.correct["up"])
    with pytest.raises(TrlError, match="'in place'"):
        evaluate(Threshold(), x, y, {"in place": in_place}, Linf(0.05))


def test_the_model_comes_back_as_it_was() -> None:
    def leaves_training_mode(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.train()
        return x

    model, (x, y) = Net(), images()
    model.train()
    model.body[2].eval()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, x, y, {"train": leaves_training_mode, "sign": gradient_sign(0.1)}, Linf(0.1))
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(found.correct["train"], found.correct["clean"])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(TrlError):
        evaluate(model, x, y, {"far": shift(0.3)}, Linf(0.1))
    assert [module.training for module in model.modules()] == flags


def test_decisions_are_made_in_fp32() -> None:
    class Fine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    model = Fine(1, 2)
    model.weight.data = torch.tensor([[1.0], [-1.0]])
    model.bias.data = torch.tensor([-1.0, 0.0])  # class 0 above one half; bf16 cannot tell 0.5001 from it
    x, y = pixels(0.4999, 0.5001), torch.tensor([1, 0])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (model(x).argmax(1) == y).sum() < 2
        found = evaluate(model, x, y, {"up": shift(0.001), "sign": gradient_sign(0.0)}, Linf(0.001))
    assert found.correct["clean"].tolist() == found.correct["sign"].tolist() == [True, True]
    assert found.correct["up"].tolist() == [False, True]


BAD_ATTACKS = {
    "out of the ball": (lambda m, x, y: (x + 0.13).clamp(0, 1), "leaves the linf ball of 0.1 by 0.03"),
    "out of the box": (lambda m, x, y: x - 0.1, r"leaves \[0, 1\] by 0.08"),
    "not a number": (lambda m, x, y: torch.where(x > 0.3, x, torch.nan), "returned NaN"),
    "infinite": (lambda m, x, y: x / 0, "leaves"),
    "too few": (lambda m, x, y: x[1:], r"returned \(1, 1, 1, 1\)"),
    "bytes": (lambda m, x, y: (255 * x).byte(), "torch.uint8"),
    "nothing": (lambda m, x, y: None, "returned NoneType"),
}


@pytest.mark.parametrize("name", BAD_ATTACKS)
def test_an_attack_that_breaks_the_rules_is_named(name: str) -> None:
    attack, message = BAD_ATTACKS[name]
    x, y = pixels(0.02, 0.6), torch.tensor([0, 1])
    with pytest.raises(TrlError, match=f"attack '{name}' .*{message}"):
        evaluate(Threshold(), x, y, {"fine": shift(0.1), name: attack}, Linf(0.1))


@pytest.mark.parametrize("beyond", [5e-6, -5e-6])
@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "fab", "none"])
def test_images_a_rounding_error_outside_are_taken_as_if_inside(beyond: float, name: str) -> None:
    (x, y), threat = images(), Linf(0.1)
    attack = (lambda model, x, y: x) if name == "none" else build_attack(name, threat)
    found = evaluate(Net(), x / 255 + beyond, y, {name: attack}, threat)
    assert 0 <= found.adversarials.min() <= found.adversarials.max() <= 1
    assert torch.equal(evaluate(Net(), found.adversarials, y, {}, Linf(0.0)).worst, found.worst)


def test_images_further_outside_are_refused_as_natural_images() -> None:
    (x, y), attacks = images(), {"up": shift(0.0)}
    with pytest.raises(TrlError, match=r"pixels lie in \[\S+, 1\.00005\]: give images in .0, 1."):
        evaluate(Net(), x / 255 + 5e-5, y, attacks, Linf(0.1))


def test_results_a_rounding_error_outside_are_brought_back_before_they_are_judged() -> None:
    x, y = pixels(0.9995, 0.2), torch.tensor([1, 0])
    found = evaluate(Threshold(), x, y, {"up": lambda m, x, y: x + 0.000505}, Linf(0.001))
    assert found.adversarials.max() == 1


def test_an_l2_attack_is_measured_in_l2() -> None:
    model, (x, y) = Net(), images()
    evaluate(model, x, y, {"l2": shift(0.1)}, L2(0.1 * 12**0.5))
    with pytest.raises(TrlError, match="leaves the l2 ball"):
        evaluate(model, x, y, {"l2": shift(0.1)}, L2(0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": {"worst": shift(0.0)}}, "'worst'"),
        ({"attacks": {"clean": shift(0.0)}}, "'clean'"),
        ({"attacks": {"": shift(0.0)}}, "an attack is called ''"),
        ({"attacks": {" ": shift(0.0)}}, "an attack is called ' '"),
        ({"attacks": {1: shift(0.0)}}, "an attack is called 1"),
        ({"attacks": {None: shift(0.0)}}, "an attack is called None"),
        ({"attacks": {"a": Ensemble({"": shift(0.0)})}}, "an attack is called ''"),
        ({"attacks": {"a": Ensemble({1: shift(0.0), "1": shift(0.1)})}}, "an attack is called 1"),
        ({"attacks": {"a/b": shift(0.1), "a": Ensemble({"b": shift(0.0)})}}, "two attacks or parts are called 'a/b'"),
        ({"attacks": {"a": Ensemble({"b": shift(0.0)}), "a/b": shift(0.1)}}, "two attacks or parts are called 'a/b'"),
        (
            {"attacks": {"a": Ensemble({"b/c": shift(0.0)}), "a/b": Ensemble({"c": shift(0.1)})}},
            "two attacks or parts are called 'a/b/c'",
        ),
        ({"y": torch.tensor([0, 2])}, "labels range from 0 to 2, but the model has 2 classes"),
        ({"y": torch.tensor([-1, 1])}, "labels range from -1"),
        ({"y": torch.tensor([0.0, 1.0])}, "labels must be integer"),
        ({"y": torch.tensor([0])}, "one label each"),
        ({"x": pixels(), "y": torch.tensor([], dtype=torch.int64)}, "at least one"),
        ({"x": pixels(0.2, 1.4)}, r"pixels lie in \[0.2, 1.4\]"),
        ({"x": pixels(0.2, torch.nan)}, "pixels lie in"),
        ({"x": pixels(0.2, 0.4).long()}, "images are torch.int64"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    good = {"x": pixels(0.2, 0.8), "y": torch.tensor([0, 1]), "attacks": {"up": shift(0.1)}}
    evaluate(Threshold(), threat=Linf(0.1), **good)
    with pytest.raises(TrlError, match=message):
        evaluate(Threshold(), threat=Linf(0.1), **(good | change))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda x: torch.full((len(x), 2), torch.nan), "NaN on natural images"),
        (
            lambda x: torch.where(x.flatten(1) > 0.85, torch.nan, x.flatten(1)).repeat(1, 2),
            "NaN on results of attack 'up'",
        ),
        (lambda x: x.flatten(), r"logits \[2, classes\]"),
    ],
)
def test_a_broken_model_is_refused(logits, message: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return logits(x)

    with pytest.raises(TrlError, match=message):
        evaluate(Broken(), pixels(0.2, 0.8), torch.tensor([0, 0]), {"up": shift(0.1)}, Linf(0.1))


def test_summary_is_the_attack_json() -> None:
    x = pixels(*[0.1] * 7, 0.45, 0.9, 0.9)
    found = evaluate(Threshold(), x, torch.zeros(10, dtype=torch.int64), {"up": shift(0.1)}, Linf(0.1))
    summary = json.loads(json.dumps(found.summary()))
    assert list(summary) == ["epsilon", "clean", "robust", "cost", "warnings"]
    assert summary["epsilon"] == 0.1
    assert list(summary["robust"]) == ["up", "worst"]
    # Wilson's interval of 8 in 10, from his formula with z = 1.959964
    assert summary["clean"] == pytest.approx({"accuracy": 0.8, "low": 0.490162, "high": 0.943318, "n": 10}, abs=1e-6)
    assert summary["robust"]["worst"]["accuracy"] == summary["robust"]["up"]["accuracy"] == 0.7


def test_curve_of_a_linear_model_is_its_margin_distribution() -> None:
    margins = torch.tensor([0.05, 0.15, 0.25, 0.35, 0.45])
    x, y = (0.5 - margins).view(-1, 1, 1, 1), torch.zeros(5, dtype=torch.int64)
    points = epsilon_curve(Threshold(), x, y, shift, Linf, [0.4, 0.0, 0.1, 0.2, 0.1, 0.5], batch_size=2)
    assert [point.epsilon for point in points] == [0.0, 0.1, 0.2, 0.4, 0.5]
    assert [point.accuracy for point in points] == [1.0, 0.8, 0.6, 0.2, 0.0]
    assert all(point.low <= point.accuracy <= point.high for point in points)


def test_curve_never_rises_and_attacks_only_survivors() -> None:
    attacked = []

    def only_weak_at_larger(epsilon: float):
        def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attacked.append((epsilon, len(x)))
            return (x + (epsilon if epsilon < 0.15 else 0)).clamp(0, 1)

        return attack

    x, y = pixels(0.45, 0.1, 0.9), torch.tensor([0, 0, 0])
    points = epsilon_curve(Threshold(), x, y, only_weak_at_larger, Linf, [0.0, 0.1, 0.2])
    assert [round(point.accuracy * 3) for point in points] == [2, 1, 1]
    assert attacked == [(0.1, 2), (0.2, 1)]


def test_survivors_are_those_of_evaluate() -> None:
    """Also of an ensemble, whose parts have seeds of their own."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(40, 1, 4, 4), torch.randint(3, (40,))
    attack = build_attack("autoattack", Linf(0.05), version="custom", parts=("apgd_ce", "square"))
    expected = evaluate(model, x, y, {"it": attack}, Linf(0.05), 7, checks=False)
    clean, robust = survivors(model, x, y, attack, Linf(0.05), 7, name="it")
    assert torch.equal(clean, expected.correct["clean"])
    assert torch.equal(robust, expected.correct["it"])
    assert 0 < robust.sum() < clean.sum()
