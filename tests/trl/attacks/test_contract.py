"""What every attack promises, whatever model, shape, type and threat it meets."""

import copy
import importlib
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import trl.attacks
from trl.attacks import ATTACKS, Misclassified, Targeted, build_attack, fgsm, pgd
from trl.common.errors import TrlError
from trl.threat import L2, Linf, Threat, build_threat

SINGLE = [name for name in ATTACKS.names() if name != "autoattack"]  # whose parts are these
names = pytest.mark.parametrize("name", SINGLE)
WITHOUT_GRADIENT = ("square",)
IN_FULL_PRECISION = ("square", "cw_l2", "fab", "fab_t")
norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def few(name: str, steps: int = 3) -> dict[str, Any]:
    """Options for a quick run of the attack, whichever it has."""
    wanted = {"steps": steps, "restarts": 2, "queries": 10 * steps, "targets": 2}
    return {key: wanted[key] for key in ATTACKS.options(name).model_fields if key in wanted}


def attack(name: str, threat: Threat, **options: Any) -> trl.attacks.Attack:
    if name == "cw_l2" and threat.name != "l2":
        threat = L2(threat.epsilon / 11)  # inside the others' balls up to 121 values
    return build_attack(name, threat, **{**few(name), **options})


def network(shape: tuple[int, ...], classes: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Batch norm, dropout and, for images, a convolution."""
    front: list[nn.Module] = [nn.Flatten(), nn.Linear(int(torch.Size(shape).numel()), 8), nn.BatchNorm1d(8)]
    if len(shape) == 3:
        front = [nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        front += [nn.Flatten(), nn.Linear(16, 8)]
    return nn.Sequential(*front, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)).to(dtype)


def data(n: int, shape: tuple[int, ...] = (1, 6, 6), classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    return (torch.rand(n, *shape) * 1.4 - 0.2).clamp(0, 1), torch.randint(classes, (n,))


def assert_inside(x_adv: Tensor, x: Tensor, threat: Threat) -> None:
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[threat.name]
    assert (x_adv.double() - x.double()).flatten(1).norm(order, dim=1).max() <= threat.epsilon + 1e-6


@given(
    name=st.sampled_from(SINGLE),
    threat=st.builds(build_threat, st.sampled_from(["linf", "l2", "l1"]), st.floats(0, 2)),
    shape=st.sampled_from([(1, 8, 8), (3, 5, 7), (9,), (2, 3)]),
    n=st.sampled_from([1, 3, 257]),
    classes=st.sampled_from([2, 3, 10, 200]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    label=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
    loss=st.sampled_from(["ce", "cw", "dlr"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_stays_inside_and_leaves_its_input(
    name: str,
    threat: Threat,
    shape: tuple[int, ...],
    n: int,
    classes: int,
    dtype: torch.dtype,
    label: torch.dtype,
    loss: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = network(shape, classes, dtype).eval()
    x, y = data(n, shape, classes)
    x, y = x.to(dtype), y.to(label)
    before_x, before_y = x.clone(), y.clone()
    options = {"loss": loss} if "loss" in ATTACKS.options(name).model_fields else {}
    x_adv = attack(name, threat, **options)(model, x, y)
    assert_inside(x_adv, x, threat)
    assert torch.equal(x, before_x)
    assert torch.equal(y, before_y)


@names
@norms
def test_it_moves_and_raises_the_loss(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = network((1, 6, 6), 3).eval()
    x, _ = data(20)
    y = model(x).argmax(1)  # an attack may leave an image alone that is misclassified already
    x_adv = attack(name, build_threat(norm, 0.3))(model, x, y)
    before, after = (nn.functional.cross_entropy(model(i), y, reduction="none") for i in (x, x_adv))
    # FAB and DeepFool look beyond the ball, and project what they find
    assert (after > before).float().mean() > (0.7 if name in ("deepfool", "fab", "fab_t") else 0.9)


@names
@norms
def test_epsilon_zero_returns_x(name: str, norm: str) -> None:
    x, y = data(7)
    x_adv = attack(name, build_threat(norm, 0.0))(network((1, 6, 6), 3), x, y)
    assert torch.equal(x_adv, x)
    assert x_adv.data_ptr() != x.data_ptr()


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "values": copy.deepcopy(model.state_dict()),
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


class Broken(nn.Module):
    """Runs `inner` until the call number `fails_in`."""

    def __init__(self, inner: nn.Module, fails_in: int) -> None:
        super().__init__()
        self.inner, self.left = inner, fails_in

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyError("broken")
        return self.inner(x)


@names
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_model_is_left_as_it_was(name: str, mode: str) -> None:
    torch.manual_seed(0)
    model = network((1, 6, 6), 3)
    model.train(mode != "eval")
    if mode == "mixed":
        model[1].eval()
        model[0].weight.requires_grad_(False)
    x, y = data(9)
    model(x).sum().backward()  # leaves gradients behind, and moves the statistics in train mode
    model[0].bias.grad = None
    before = state(model)
    x_adv = attack(name, Linf(0.1))(model, x, y)
    assert not torch.equal(x_adv, x)
    assert_same(before, state(model))


@names
def test_model_is_left_as_it_was_by_a_failure(name: str) -> None:
    model = Broken(network((1, 6, 6), 3).train(), fails_in=1 if name == "fgsm" else 2)
    model.inner[1].eval()
    x, y = data(9)
    before = state(model)
    with pytest.raises(KeyError, match="broken"):
        attack(name, Linf(0.1))(model, x, y)
    assert_same(before, state(model))
    assert torch.is_grad_enabled()


@names
def test_attack_sees_eval_mode(name: str) -> None:
    """The same in either mode: batch norm uses its statistics, dropout is off."""
    model, (x, y) = network((1, 6, 6), 3), data(9)
    results = []
    for training in (True, False):
        torch.manual_seed(0)
        results.append(attack(name, Linf(0.1))(model.train(training), x, y))
    assert torch.equal(*results)


def test_a_graph_built_before_the_attack_still_reaches_the_parameters() -> None:
    model, (x, y) = network((1, 6, 6), 3).eval(), data(9)
    nn.functional.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    pgd(model, x, y, Linf(0.1), steps=2)
    loss.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


@names
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(name: str, context: Callable[[], Any]) -> None:
    model, (x, y) = network((1, 6, 6), 3), data(9)
    torch.manual_seed(0)
    expected = attack(name, Linf(0.1))(model, x, y)
    torch.manual_seed(0)
    with context():
        x_adv = attack(name, Linf(0.1))(model, x.clone(), y.clone())
        assert not torch.is_grad_enabled()
    assert torch.equal(x_adv, expected)


@names
def test_autocast(name: str) -> None:
    """Gradients, where there are any, follow the caller's autocast; images stay in their own precision."""
    seen: list[torch.dtype] = []
    model, (x, y) = network((1, 6, 6), 3).eval(), data(9)
    model[-1].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = attack(name, Linf(0.1))(model, x, y)
    assert_inside(x_adv, x, Linf(0.1))
    assert torch.bfloat16 in seen or name in IN_FULL_PRECISION
    if name in ("fgsm", "bim", "mim", "deepfool"):  # one result per sample, nothing to decide
        assert set(seen) == {torch.bfloat16}
    else:
        assert seen[-1] == torch.float32  # the decision


@names
def test_memory_format_is_kept(name: str) -> None:
    model, (x, y) = network((3, 6, 6), 3), data(9, (3, 6, 6))
    x = x.to(memory_format=torch.channels_last)
    x_adv = attack(name, Linf(0.1))(model, x, y)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)


@names
def test_input_with_a_graph_or_strides(name: str) -> None:
    model, (x, y) = network((1, 6, 6), 3), data(9)
    assert not attack(name, Linf(0.1))(model, x.clone().requires_grad_(), y).requires_grad
    assert_inside(
        attack(name, Linf(0.1))(model, x[:1].expand(9, -1, -1, -1), y), x[:1].expand(9, -1, -1, -1), Linf(0.1)
    )


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_batch(name: str, dtype: torch.dtype) -> None:
    x, y = torch.empty(0, 1, 6, 6, dtype=dtype), torch.empty(0, dtype=torch.int32)
    assert attack(name, Linf(0.1))(network((1, 6, 6), 3), x, y).shape == x.shape


class Constant(nn.Module):
    """Logits that do not depend on the image; `linked` keeps it in the graph all the same."""

    def __init__(self, linked: bool) -> None:
        super().__init__()
        self.logits, self.linked = nn.Parameter(torch.tensor([1.0, 0.0, 0.0])), linked

    def forward(self, x: Tensor) -> Tensor:
        link = 0 * x.flatten(1).sum(1, keepdim=True) if self.linked else 0
        return self.logits.expand(len(x), 3) + link


@names
@norms
def test_model_without_gradient(name: str, norm: str) -> None:
    x, y = data(9)
    threat = build_threat(norm, 0.1)
    assert_inside(attack(name, threat)(Constant(linked=True), x, y), x, threat)
    warning = pytest.warns(UserWarning, match="no gradient at its input")
    with nullcontext() if name in WITHOUT_GRADIENT else warning:
        assert_inside(attack(name, threat)(Constant(linked=False), x, y), x, threat)


@names
@norms
def test_model_with_infinite_logits(name: str, norm: str) -> None:
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), data(9)
    with torch.no_grad():
        model[1].weight[0] = torch.inf
    assert_inside(attack(name, build_threat(norm, 0.1))(model, x, y), x, build_threat(norm, 0.1))


GOOD_X, GOOD_Y = data(4)


@names
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((GOOD_X * 255).to(torch.uint8), GOOD_Y, "given uint8.*divide uint8 images by 255"),
        (GOOD_X.half(), GOOD_Y, "given float16.*autocast"),
        (GOOD_X * 255, GOOD_Y, r"in \[0, 1\] \(given 0 to 255\).*normalise inside the model"),
        ((GOOD_X - 0.5) / 0.5, GOOD_Y, r"in \[0, 1\] \(given -1 to 1\)"),
        (GOOD_X.where(GOOD_X > 0, torch.nan), GOOD_Y, r"in \[0, 1\] \(given nan"),
        (GOOD_X, GOOD_Y.float(), "labels must be integer"),
        (GOOD_X, nn.functional.one_hot(GOOD_Y, 3), "one-hot.*y.argmax"),
        (GOOD_X, nn.functional.one_hot(GOOD_Y, 3).float(), "one-hot.*y.argmax"),
        (GOOD_X, GOOD_Y[:, None], "one column.*y.squeeze"),
        (GOOD_X.numpy(), GOOD_Y, "images are a ndarray: give a tensor"),
        (GOOD_X, GOOD_Y.tolist(), "labels are a list: give a tensor"),
        (GOOD_X, GOOD_Y[:3], "one label each"),
        (GOOD_X[0, 0, 0], GOOD_Y, "one label each \\[n\\]"),
        (GOOD_X[0, 0, 0, :4], GOOD_Y, "must be \\[n"),
        (GOOD_X, GOOD_Y - 3, "labels must be at least 0"),
        (GOOD_X, GOOD_Y + 3, "the model returns 3 logits, but labels go up to"),
    ],
)
def test_input_that_does_not_fit(name: str, x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(TrlError, match=message) as error:
        attack(name, Linf(0.1))(network((1, 6, 6), 3), x, y)
    assert "\n" not in str(error.value)


def test_images_may_leave_the_box_by_rounding() -> None:
    x = GOOD_X + 5e-7
    assert_inside(pgd(network((1, 6, 6), 3), x, GOOD_Y, L2(0.1), steps=2), x, L2(0.1))


def test_model_that_returns_no_logits() -> None:
    for model in (nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Flatten(0))):
        with pytest.raises(TrlError, match=r"module that returns logits \[4, classes\]"):
            fgsm(model, GOOD_X, GOOD_Y, Linf(0.1))
    with pytest.raises(TrlError, match="single logit"):
        fgsm(nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), GOOD_X, GOOD_Y * 0, Linf(0.1))


@names
def test_names_in_the_package_are_the_functions(name: str) -> None:
    before = getattr(trl.attacks, name)
    for module in ("pgd", "fgsm", "mim"):
        importlib.import_module(f"trl.attacks.{module}")
    assert inspect.isfunction(before)
    assert getattr(trl.attacks, name) is before is ATTACKS.get(name)


def test_build_attack_is_the_function_with_its_options() -> None:
    model = network((1, 6, 6), 3)
    torch.manual_seed(0)
    expected = pgd(model, GOOD_X, GOOD_Y, L2(0.5), steps=4, step_size=2 / 255, random_start=False)
    built = build_attack("pgd", L2(0.5), steps=4, step_size="2/255", random_start=False)
    assert torch.equal(built(model, GOOD_X, GOOD_Y), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pgf", {}, "unknown attack 'pgf'; known: .*pgd"),
        ("fgsm", {"steps": 3}, "attack fgsm: steps: unknown key"),
        ("pgd", {"steps": 0}, "attack pgd: steps: .*greater than or equal to 1"),
        ("pgd", {"step_size": -1}, "attack pgd: step_size: .*greater than 0"),
        ("pgd", {"loss": "hinge"}, "attack pgd: loss: .*'ce', 'cw', 'dlr' or 'kl'"),
        ("mim", {"decay": float("nan")}, "attack mim: decay: .*finite"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError, match=message) as error:
        build_attack(name, Linf(0.1), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ATTACKS.names())
@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (object(), r"criterion must be a Criterion, not <object .*>; use an instance such as Misclassified\(\)"),
        (Targeted, r"criterion must be a Criterion, not <class .*>; use an instance such as Targeted\(\)"),
    ],
)
def test_what_is_no_criterion(name: str, criterion: Any, message: str) -> None:
    with pytest.raises(TrlError, match=message):
        ATTACKS.get(name)(network((1, 6, 6), 3), GOOD_X, GOOD_Y, L2(0.1), criterion)


def test_both_of_what_is_no_criterion() -> None:
    with pytest.raises(TrlError, match="criterion must be a Criterion"):
        Misclassified() & Targeted  # type: ignore[operator]


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"step_size": 0.0}, {"restarts": 0}, {"loss": "hinge"}, {"restarts": 2, "random_start": False}],
)
def test_direct_call_with_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(TrlError):
        pgd(network((1, 6, 6), 3), GOOD_X, GOOD_Y, Linf(0.1), **options)
