"""Weights as people save them: each form gives the network that was saved, or a line that says what is wrong."""

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trl.cli.sources import open_model
from trl.common.errors import TrlError
from trl.models import Classifier, build_model
from trl.models.base import Normalise

SHAPE = (1, 8, 8)
OPTIONS = "mlp:width=16"
State = dict[str, Tensor]


def network(seed: int = 3, **options: object) -> Classifier:
    torch.manual_seed(seed)
    return build_model("mlp", 10, SHAPE, **{"width": 16, **options}).eval()


def state(seed: int = 3) -> State:
    return dict(network(seed).state_dict())


def named(prefix: str, weights: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def opened(content: object, path: Path, architecture: str = OPTIONS) -> tuple[nn.Module, list[str]]:
    torch.save(content, path)
    return open_model(str(path), architecture, SHAPE)


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), expected(x))


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "model_state_dict", "module", "weights", "ema", "optimal_model", "mine"]
)
def test_under_any_key(key: str, tmp_path: Path) -> None:
    optimiser = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}
    named_optimiser = {"head.weight": torch.ones(2, 2)}
    content = {"epoch": 3, "acc": 91.2, "optimizer": optimiser, "optim_state": named_optimiser, key: state()}
    model, notes = opened(content, tmp_path / "w.pth")
    assert_same(model, network())
    assert notes == []


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "pth.tar", "bin"])
def test_deeper_in_a_file_of_any_name(suffix: str, tmp_path: Path) -> None:
    content = {"state_dict": {"model": OrderedDict(named("module.", state()))}}
    assert_same(opened(content, tmp_path / f"w.{suffix}")[0], network())


def test_what_people_save_beside_weights(tmp_path: Path) -> None:
    beside = {"acc": np.float64(91.2), "best": np.int64(3), "args": argparse.Namespace(lr=0.1, name="x")}
    assert_same(opened({"net": state(), **beside}, tmp_path / "w.pth")[0], network())


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"ema": state(4), "model": state()}, "'model'", "ema"),
        ({"model_ema": {"decay": 0.9, "module": state(4)}, "state_dict": state()}, "'state_dict'", "model_ema.module"),
        ({"state_dict_ema": state(4), "student": state()}, "'student'", "state_dict_ema"),
        (named("ema_model.", state(4)) | named("model.", state()), "'model'", "ema_model"),
    ],
)
def test_of_a_model_and_its_average_the_model_is_taken_and_it_is_said(
    content: Any, taken: str, left: str, tmp_path: Path
) -> None:
    model, (note,) = opened(content, tmp_path / "w.pth")
    assert_same(model, network())
    assert f"using the weights under {taken}, not under {left} (" in note


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model.", "net.0.", "1.", "a.b.c."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_after_any_prefix(prefix: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    save: Callable[[Any, Path], None] = torch.save if suffix == "pth" else save_file
    save(dict(reversed(named(prefix, state()).items())), path)
    model, notes = open_model(str(path), OPTIONS, SHAPE)
    assert_same(model, network())
    assert notes == []


def test_a_part_that_was_wrapped_and_the_count_of_an_average(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network())
    averaged.module.body = nn.DataParallel(averaged.module.body)  # type: ignore[union-attr]
    assert "n_averaged" in averaged.state_dict()
    model, notes = opened(averaged.state_dict(), tmp_path / "w.pth")
    assert_same(model, network())
    assert notes == []


@pytest.mark.parametrize("names", ["ours", "others"])
def test_a_model_that_was_saved_twice_in_one_file(names: str, tmp_path: Path) -> None:
    weights = state() if names == "ours" else dict(zip("abcdefgh", state().values(), strict=False))
    model, notes = opened(named("model.", weights) | named("attacker.model.", weights), tmp_path / "w.pth")
    assert_same(model, network())
    assert len(notes) == (names == "others")


def test_batches_that_were_not_counted(tmp_path: Path) -> None:
    expected = build_model("mnist_cnn", 10, SHAPE).eval()
    weights = {k: v for k, v in expected.state_dict().items() if "num_batches" not in k}
    for content in (weights, dict(enumerate_names(weights))):
        assert_same(opened(content, tmp_path / "w.pth", "mnist_cnn")[0], expected)


def test_counters_that_were_converted_with_the_weights(tmp_path: Path) -> None:
    expected = build_model("mnist_cnn", 10, SHAPE).eval()
    model, _ = opened({k: v.double() for k, v in expected.state_dict().items()}, tmp_path / "w.pth", "mnist_cnn")
    assert_same(model, expected)


def enumerate_names(weights: State) -> list[tuple[str, Tensor]]:
    return [(f"layer{i}", tensor) for i, tensor in enumerate(weights.values())]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_said(kind: torch.dtype, tmp_path: Path) -> None:
    model, (note,) = opened({k: v.to(kind) for k, v in state().items()}, tmp_path / "w.pth")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert note.endswith(f"weights are {str(kind).removeprefix('torch.')}, used as float32")
    assert torch.allclose(model.state_dict()["head.weight"], state()["head.weight"], atol=1e-2)


class Stored(Normalise):
    """A normalisation whose constants are saved with the weights, as other programs have it."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__((mean,), (std,))
        self.register_buffer("mean", self.mean)
        self.register_buffer("std", self.std)


@pytest.mark.parametrize("names", ["ours", "others"])
def test_a_normalisation_before_the_model(names: str, tmp_path: Path) -> None:
    weights = state() if names == "ours" else dict(enumerate_names(state()))
    before = named("0.", dict(Stored(0.25, 0.5).state_dict()))
    with pytest.raises(TrlError, match=r"normalised by 0.mean=\[0.25\], 0.std=\[0.5\]; give this") as error:
        opened(before | named("1.", weights), tmp_path / "w.pth")
    mend = str(error.value).partition("--architecture ")[2].strip("'")
    model, notes = open_model(str(tmp_path / "w.pth"), mend, SHAPE)
    assert_same(model, network(mean=[0.25], std=[0.5]))
    assert f"0.std=[0.5]; normalisation is that of {mend}" in notes[0]

    before = named("0.", dict(Stored(0.0, 1.0).state_dict()))  # one that does nothing
    assert_same(opened(before | named("1.", weights), tmp_path / "w.pth")[0], network())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "head.weight"}, "missing head.weight; give its options"),
        (lambda w: w | {f"aux.{i}": torch.ones(2) for i in range(5)}, "left over aux.0, aux.1, aux.2 and 2 more;"),
        (lambda w: w | {"head.weight": torch.ones(3, 16)}, "expected head.weight [10, 16], found head.weight [3, 16]"),
        (lambda w: {k: v.to(torch.int8) for k, v in w.items()}, "is int8; save dense float32"),
        (lambda w: w | {"head.weight": w["head.weight"].to_sparse()}, "'head.weight' is float32; save dense float32"),
        (lambda w: {k: 1e300 * v.double() for k, v in w.items()}, "holds NaN or infinite values"),
        (lambda w: {"first": w, "second": w}, "holds several models ('first', 'second'); save only the state dict"),
        (lambda w: {"epoch": 3, "acc": 91.2}, "no state dict; it holds epoch, acc; save model.state_dict"),
        (lambda w: {"biases": torch.ones(3)}, "no state dict; it holds biases; save model.state_dict"),
        (lambda w: {}, "no state dict; it holds nothing; save model.state_dict"),
        (
            lambda w: network(),
            "holds unsafe objects (trl.models.base.Classifier), which are not loaded; save",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(change: Callable[[State], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrlError) as error:
        opened(change(state()), tmp_path / "w.pth")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jit", "export"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_program_is_no_file_of_weights(kind: str, tmp_path: Path) -> None:
    path, x = tmp_path / ("w.pt" if kind == "jit" else "w.pt2"), torch.rand(2, *SHAPE)
    if kind == "jit":
        torch.jit.save(torch.jit.trace(network(), x), path)
    else:
        torch.export.save(torch.export.export(network(), (x,)), path)
    with pytest.raises(TrlError, match=rf"a program, not weights; .* returns torch.{kind}.load\('{path.name}'\)"):
        open_model(str(path), None, SHAPE)
