"""Deep Pursuit against its definition: autograd, plain loops and exact norms."""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.detectors.observe import observe
from trl.models import build_model, load_model, save_model
from trl.models.deep_pursuit import DeepPursuit, TransposableConv2d

RESIDUAL = {"filters": (3, 3, 4), "strides": (1, 2, 1), "skips": ((1, 3),)}
STRIDES = [(1,), (2,), (3,), (1, 1), (1, 3), (2, 2), (1, 1, 1), (1, 2, 1), (2, 1, 2), (1, 1, 1, 1), (1, 2, 1, 2)]


@dataclass(frozen=True)
class Drawn:
    """A network without head, and images, all in float64."""

    body: DeepPursuit
    x: Tensor

    def start(self) -> list[Tensor]:
        codes: list[Tensor] = []
        for j, dictionary in enumerate(self.body.dictionaries):
            codes.append(dictionary(self.body.target(j, self.x, codes)).relu())
        return codes


def made(shape: tuple[int, int, int], seed: int = 0, n: int = 3, scale: float = 1.0, **options: Any) -> Drawn:
    torch.manual_seed(seed)
    body = build_model("deep_pursuit", 2, shape, **options).body[0].double().eval()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(scale)
    return Drawn(body, torch.rand(n, *shape, dtype=torch.float64))


@st.composite
def networks(draw: st.DrawFn, momentum: float = 0.0) -> Drawn:
    strides = draw(st.sampled_from(STRIDES))
    layers, reduction = len(strides), prod(strides)
    side = reduction * -(-4 // reduction)
    possible = [(k, j) for j in range(3, layers + 1) for k in range(1, j - 1)]
    skips = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    filters = tuple(draw(st.integers(1, 3)) for _ in range(layers))
    options = {"filters": filters, "strides": strides, "skips": skips, "momentum": momentum}
    shape = (draw(st.integers(1, 2)), side, side * draw(st.integers(1, 2)))
    return made(shape, draw(st.integers(0, 99)), 2, draw(st.floats(0.3, 4)), **options)


def matrix(conv: TransposableConv2d) -> Tensor:
    """The transpose of a convolution, column by column."""
    size = conv.vector[0].numel()
    return conv.transpose(torch.eye(size, dtype=torch.float64).view(size, *conv.vector.shape[1:])).flatten(1).T


def exact_rates(body: DeepPursuit) -> list[Tensor]:
    def squared(module: nn.Module) -> Tensor:
        return (
            torch.linalg.matrix_norm(matrix(module), 2) ** 2
            if isinstance(module, TransposableConv2d)
            else torch.tensor(1.0)
        )

    return [
        1 / sum([squared(body.connections[name]) for _, name in feeds], squared(dictionary))
        for dictionary, feeds in zip(body.dictionaries, body.feeds, strict=True)
    ]


@settings(max_examples=25)
@given(networks())
def test_the_gradient_is_that_of_the_objective(drawn: Drawn) -> None:
    body, x = drawn.body, drawn.x
    codes = [torch.rand_like(code).requires_grad_() for code in drawn.start()]
    expected = torch.autograd.grad(body.objective(x, codes).sum(), codes)
    residuals = {j: body.target(j, x, codes) - d.transpose(codes[j]) for j, d in enumerate(body.dictionaries)}
    for j, gradient in enumerate(expected):
        torch.testing.assert_close(body.descent(j, residuals), -gradient, rtol=1e-10, atol=1e-10)


def test_the_objective_is_the_papers() -> None:
    """Two layers in matrices: ½‖x - D₁Γ₁‖² + ½‖Γ₁ - D₂Γ₂‖² + λ₁·Γ₁ + λ₂·Γ₂."""
    drawn = made((1, 4, 4), filters=(2, 3), strides=(1, 2))
    codes = [torch.rand_like(code) for code in drawn.start()]
    x, one, two = (t[0].flatten() for t in (drawn.x, *codes))
    first, second = (matrix(d) for d in drawn.body.dictionaries)
    penalties = [-(d.bias.view(-1, 1, 1) * c[0]).sum() for d, c in zip(drawn.body.dictionaries, codes, strict=True)]
    expected = (x - first @ one).square().sum() / 2 + (one - second @ two).square().sum() / 2 + sum(penalties)
    torch.testing.assert_close(drawn.body.objective(drawn.x, codes)[0], expected)


@pytest.mark.parametrize("pursuit", ["joint", "layered"])
def test_without_sweeps_it_is_the_relu_network(pursuit: str) -> None:
    net = build_model("deep_pursuit", 5, (3, 8, 8), sweeps=0, pursuit=pursuit)
    convs = [nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1)]
    plain = nn.Sequential(*[m for conv in convs for m in (conv, nn.ReLU())], nn.Flatten(), nn.Linear(32 * 16, 5))
    plain.to(memory_format=torch.channels_last)
    mine = [p for name, p in net.named_parameters()]
    for parameter, value in zip(plain.parameters(), mine, strict=True):
        parameter.data.copy_(value.data)
    xs = [torch.rand(7, 3, 8, 8).requires_grad_()]
    xs.append(xs[0].detach().clone().requires_grad_())
    outputs = [model(x) for model, x in zip((net, plain), xs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(xs[0].grad, xs[1].grad)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(mine, plain.parameters(), strict=True))


def test_without_sweeps_a_skip_adds_codes() -> None:
    net, x = build_model("deep_pursuit", 5, (1, 8, 8), sweeps=0, **RESIDUAL), torch.rand(4, 1, 8, 8)
    w = net.state_dict()

    def layer(j: int, t: Tensor) -> Tensor:
        key = f"body.0.dictionaries.{j}"
        return F.conv2d(t, w[f"{key}.weight"], w[f"{key}.bias"], stride=(1, 2, 1)[j], padding=1).relu()

    first = layer(0, x)
    second = layer(1, first)
    third = layer(2, second + F.conv2d(first, w["body.0.connections.1-3.weight"], stride=2))
    assert torch.equal(net.features(x), third.flatten(1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@settings(max_examples=40)
@given(st.data())
@torch.no_grad()
def test_the_objective_never_rises(momentum: float, data: st.DataObject) -> None:
    drawn = data.draw(networks(momentum))
    body, x = drawn.body, drawn.x
    rates, codes = exact_rates(body), drawn.start()
    earlier, before = codes, body.objective(x, codes)
    for _ in range(8):
        codes, earlier = body.sweep(x, codes, earlier, rates), codes
        now = body.objective(x, codes)
        assert (now <= before + 1e-9 * (1 + before.abs())).all()
        assert all((code >= 0).all() for code in codes)
        before = now


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_many_sweeps_find_the_minimum(momentum: float) -> None:
    """Where a code is positive the gradient vanishes; where it is 0 the objective rises with it."""
    drawn = made((1, 4, 4), momentum=momentum, **RESIDUAL)
    body, x = drawn.body, drawn.x
    rates, codes = exact_rates(body), drawn.start()
    earlier = codes
    with torch.no_grad():
        for _ in range(1000):
            codes, earlier = body.sweep(x, codes, earlier, rates), codes
    assert all((code > 0.01).any() for code in codes)
    codes = [code.requires_grad_() for code in codes]
    for code, gradient in zip(codes, torch.autograd.grad(body.objective(x, codes).sum(), codes), strict=True):
        assert torch.minimum(code, gradient).abs().max() < 1e-5


def test_momentum_is_dropped_for_the_images_whose_objective_it_would_raise() -> None:
    drawn = made((1, 8, 8), momentum=0.9, n=2, **RESIDUAL)
    body, x = drawn.body, drawn.x
    rates, codes = exact_rates(body), drawn.start()
    plain = body.sweep(x, codes, codes, rates)
    last = body.dictionaries[2]
    target = body.target(2, x, plain)

    def step(code: Tensor) -> Tensor:
        return (code + rates[2] * body.descent(2, {2: target - last.transpose(code)})).relu()

    # the first image goes on downhill, the second would go back uphill
    change = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) * (step(codes[2]) - codes[2])
    found = body.sweep(x, codes, [codes[0], codes[1], codes[2] - change], rates)[2]
    torch.testing.assert_close(found[0], step((codes[2] + 0.9 * change).relu())[0])
    torch.testing.assert_close(found[1], plain[2][1])
    assert not torch.allclose(found[0], plain[2][0])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_layered_pursuit_is_a_loop_on_each_layer(momentum: float) -> None:
    drawn = made((1, 8, 8), pursuit="layered", sweeps=4, momentum=momentum, **RESIDUAL)
    body, codes = drawn.body, []
    for j, dictionary in enumerate(body.dictionaries):
        target = body.target(j, drawn.x, codes)
        code = earlier = dictionary(target).relu()

        def loss(code: Tensor, target: Tensor = target, dictionary: TransposableConv2d = dictionary) -> Tensor:
            fit = (target - dictionary.transpose(code)).square().sum((1, 2, 3)) / 2
            return fit - (dictionary.bias.view(-1, 1, 1) * code).sum((1, 2, 3))

        for _ in range(4):
            ahead = (code + momentum * (code - earlier)).relu()
            ahead = torch.where((loss(ahead) <= loss(code)).view(-1, 1, 1, 1), ahead, code).detach().requires_grad_()
            step = torch.autograd.grad(loss(ahead).sum(), ahead)[0] / dictionary.squared_norm()
            code, earlier = (ahead - step).relu().detach(), code
        codes.append(code)
    torch.testing.assert_close(body(drawn.x), codes[-1])


@pytest.mark.parametrize("pursuit", ["joint", "layered"])
def test_gradients_flow_through_all_sweeps(pursuit: str) -> None:
    drawn = made((1, 4, 4), n=1, pursuit=pursuit, sweeps=3, **RESIDUAL)
    weights = dict(drawn.body.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(drawn.body, dict(zip(weights, values, strict=True)), (x,))

    inputs = [t.detach().clone().requires_grad_() for t in (drawn.x, *weights.values())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 3), st.integers(0, 9))
def test_transpose_and_norm_are_those_of_the_matrix(c: int, d: int, side: int, stride: int, seed: int) -> None:
    torch.manual_seed(seed)
    conv = TransposableConv2d((c, 2 * stride, 3 * stride), (d, 2, 3), side).double()
    x, y = torch.rand(1, c, 2 * stride, 3 * stride).double(), torch.rand(1, d, 2, 3).double()
    through = conv(x) - conv.bias.view(-1, 1, 1)
    torch.testing.assert_close((through * y).sum(), (x * conv.transpose(y)).sum())
    for _ in range(50):
        estimate = conv.squared_norm()
    largest = torch.linalg.matrix_norm(matrix(conv), 2) ** 2
    torch.testing.assert_close(estimate, largest, rtol=0.02, atol=0)
    assert estimate <= largest * (1 + 1e-9)


def test_the_norm_follows_the_weights_in_training_mode_only() -> None:
    net = build_model("deep_pursuit", 3, (1, 8, 8)).eval()
    x, dictionary = torch.rand(2, 1, 8, 8), net.body[0].dictionaries[1]
    with torch.no_grad():
        dictionary.weight.normal_()
    before = dictionary.vector.clone()
    stale = dictionary.squared_norm()
    net(x)
    assert torch.equal(dictionary.vector, before)
    net.train()
    for _ in range(20):
        net(x)
    fresh = dictionary.squared_norm()
    assert fresh > 1.1 * stale


def test_two_passes_in_training_mode_before_one_backward() -> None:
    net = build_model("deep_pursuit", 3, (1, 8, 8), **RESIDUAL).train()
    (net(torch.rand(2, 1, 8, 8)).sum() + net(torch.rand(2, 1, 8, 8)).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_in_half_precision_all_weights_get_gradients() -> None:
    net, x = build_model("deep_pursuit", 3, (1, 8, 8), **RESIDUAL).train(), torch.rand(4, 1, 8, 8)
    gradients = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = net(x)
        logits.float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_what_is_loaded_has_the_norms_that_were_saved(tmp_path: Any) -> None:
    net, x = build_model("deep_pursuit", 3, (1, 8, 8), **RESIDUAL), torch.rand(2, 1, 8, 8)
    net.train()(x)
    save_model(net, tmp_path)
    assert torch.equal(load_model(tmp_path)(x), net.eval()(x))


@pytest.mark.parametrize("pursuit", ["joint", "layered"])
def test_hooks_see_each_code_once_after_all_sweeps(pursuit: str) -> None:
    net, x = build_model("deep_pursuit", 3, (1, 8, 8), sweeps=2, pursuit=pursuit).eval(), torch.rand(2, 1, 8, 8)
    seen: list[Tensor] = []
    for code in net.body[0].codes:
        code.register_forward_hook(lambda _, __, output: seen.append(output))
    embedding = net.features(x)
    assert [tuple(code.shape[1:]) for code in seen] == [(16, 8, 8), (32, 4, 4), (32, 4, 4)]
    assert torch.equal(seen[-1].flatten(1), embedding)
    assert observe(net, x, "layers")[1].shape[1] == 16 + 32 + embedding.shape[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweeps": -1}, "model deep_pursuit: sweeps: should be greater than or equal to 0, not -1"),
        ({"strides": (1, 3, 1)}, "strides: 3 of layer 2 does not fit its input of 8×8 pixels; a stride must divide"),
        ({"strides": (4, 1, 1)}, "strides: 4 of layer 1 does not fit its input of 8×8 pixels; .* at most 3"),
        ({"strides": (2, 2)}, "strides: needs one for each of the 3 entries of filters, not 2"),
        ({"filters": ()}, "filters: Tuple should have at least 1 item"),
        ({"skips": ((1, 2),)}, "skips: \\(1, 2\\) must lead once from a layer to one after the next; there are 3"),
        ({"skips": ((1, 4),)}, "skips: \\(1, 4\\) must lead once"),
        ({"skips": ((3, 1),)}, "skips: \\(3, 1\\) must lead once"),
        ({"skips": ((1, 3), (1, 3))}, "skips: \\(1, 3\\) must lead once"),
        ({"pursuit": "deep"}, "pursuit: should be 'joint' or 'layered', not 'deep'"),
        ({"momentum": 1}, "momentum: should be less than 1, not 1"),
    ],
)
def test_a_wrong_option_is_explained_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError) as caught:
        build_model("deep_pursuit", 10, (1, 8, 8), **options)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)
