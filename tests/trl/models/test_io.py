"""Models on disk: what is loaded is what was saved, and damage is named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers.architectures import NAMES, images, model
from tests.helpers.tiny_models import Halved
from trl.common.errors import TrlError
from trl.models import Classifier, build_model, load_model, save_model


def _same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_bit_for_bit(name: str, tmp_path: Path) -> None:
    saved = model(name)
    save_model(saved, tmp_path / "new" / "folder")
    torch.manual_seed(5)
    loaded = load_model(tmp_path / "new" / "folder")
    assert _same(saved, loaded)
    assert loaded.config == saved.config
    assert not any(m.training for m in loaded.modules())
    assert torch.equal(loaded(images(name)), saved(images(name)))
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture
def small() -> Classifier:
    torch.manual_seed(0)
    return build_model("wrn_10_1", 4, (3, 8, 8), leak=0.2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)).eval()


@pytest.fixture
def folder(small: Classifier, tmp_path: Path) -> Path:
    save_model(small, tmp_path)
    return tmp_path


def test_options_and_normalisation_come_back(small: Classifier, folder: Path) -> None:
    loaded = load_model(folder)
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(loaded(x), small(x))
    assert loaded.config == small.config


def test_loading_leaves_the_random_stream_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model(folder)
    assert torch.equal(torch.rand(4), expected)


def test_the_same_weights_give_the_same_bytes(small: Classifier, folder: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    save_model(copy.deepcopy(small).to(memory_format=torch.channels_last).train(), other)
    for file in ("model.safetensors", "config.json"):
        assert (folder / file).read_bytes() == (other / file).read_bytes()


def _parallel(net: Classifier) -> nn.Module:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(net)
    finally:
        distributed.destroy_process_group()


def _compiled_inside(net: Classifier) -> nn.Module:
    net.body = torch.compile(net.body)
    return net


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, _parallel, AveragedModel, _compiled_inside, lambda net: torch.compile(AveragedModel(net))],
    ids=["compiled", "parallel", "averaged", "compiled inside", "compiled average"],
)
def test_wrappers_leave_no_trace(
    wrap: Callable[[Classifier], nn.Module], small: Classifier, folder: Path, tmp_path_factory
) -> None:
    other = tmp_path_factory.mktemp("other")
    save_model(wrap(copy.deepcopy(small)), other)
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert _same(load_model(other), small)


@pytest.mark.parametrize(
    "stranger", [nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)), Halved(build_model("mlp", 2, (1, 4, 4)))]
)
def test_a_foreign_module_is_refused(stranger: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(TrlError, match="make the model with build_model"):
        save_model(stranger, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(TrlError, match=f"{file}: cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, -9])
def test_a_damaged_file_is_named_in_one_line(folder: Path, file: str, keep: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrlError, match=f"{file}: damaged") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vgg"}, "config.json: unknown model 'vgg'"),
        ({"name": "wrn_16_1"}, "model.safetensors: does not match config.json at 'body.2.residual.0.weight'"),
        ({"name": "wrn_10_2"}, "at 'body.1.residual.0.weight': expected float32 \\[32, 16, 3, 3\\], found"),
        ({"classes": 5}, "at 'head.weight': expected float32 \\[5, 64\\], found float32 \\[4, 64\\]"),
        ({"classes": "many"}, "config.json: damaged \\(classes: "),
        ({"shape": [3, 8]}, "config.json: damaged \\(shape.2: "),
        ({"shape": [1, 8, 8]}, "config.json: mean and std need one value for each of the 1 channels"),
        ({"options": {"leek": 1}}, "config.json: model wrn_10_1: leek: unknown key"),
        ({"options": {"classes": 1}}, "config.json: .*multiple values for .*'classes'"),
        ({"extra": 1}, "config.json: damaged \\(extra: unknown key"),
    ],
)
def test_a_config_of_another_model_is_noticed(folder: Path, change: dict, message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TrlError, match=message):
        load_model(folder)


def _edit(folder: Path, change: Callable[[dict], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, bad: float) -> None:
    _edit(folder, lambda w: w["head.bias"].__setitem__(2, bad))
    with pytest.raises(TrlError, match=r"'head.bias' holds NaN or infinite"):
        load_model(folder)


def test_missing_surplus_and_half_precision_weights_are_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    _edit(folder, lambda w: w.pop("head.bias"))
    with pytest.raises(TrlError, match=r"'head.bias': expected float32 \[4\], found nothing"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(whole)
    _edit(folder, lambda w: w.update(more=torch.zeros(2)))
    with pytest.raises(TrlError, match="'more': expected nothing, found float32 \\[2\\]"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(whole)
    _edit(folder, lambda w: w.update({"head.bias": w["head.bias"].half()}))
    with pytest.raises(TrlError, match=r"'head.bias': expected float32 \[4\], found float16 \[4\]"):
        load_model(folder)
