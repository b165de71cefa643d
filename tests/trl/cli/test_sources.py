"""What a command line names: every way in leads to the same model and images, every mistake to one line."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trl.cli.sources import model_key, open_images, open_model, parse_choice
from trl.common.errors import TrlError
from trl.data import load_dataset
from trl.models import Classifier, build_model, save_model

SHAPE = (1, 8, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pgd", ("pgd", {})),
        ("pgd:steps=50,step_size=2/255,random_start=false", {"steps": 50, "step_size": "2/255", "random_start": False}),
        ("autoattack:version=custom,parts=[fab, square]", {"version": "custom", "parts": ["fab", "square"]}),
    ],
)
def test_a_choice_is_a_name_with_options(text: str, expected: object) -> None:
    name, options = parse_choice(text)
    assert (name, options) == expected or options == expected
    assert name == text.partition(":")[0]


@pytest.mark.parametrize("text", ["", ":steps=3", "pgd:steps", "pgd:steps=[1", "pgd:steps=1,steps=2", "pgd:1=2"])
def test_a_choice_that_is_none(text: str) -> None:
    with pytest.raises(TrlError, match="write NAME or NAME:option=value"):
        parse_choice(text)


def network(**options: object) -> Classifier:
    torch.manual_seed(3)
    return build_model("mlp", 10, SHAPE, **{"width": 16, **options}).eval()


@pytest.mark.parametrize(
    "form", ["folder", "names", "prefix", "checkpoint", "safetensors", "order", "function", "module"]
)
def test_every_form_gives_the_model(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source, architecture, notes = network(), tmp_path / "w.pth", "mlp:width=16", 0
    state = model.state_dict()
    if form == "folder":
        source, architecture = tmp_path / "model", None
        save_model(model, source)
    elif form == "names":
        torch.save(dict(reversed(state.items())), source)
    elif form == "prefix":
        torch.save({f"module.{k}": v for k, v in state.items()}, source)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": state}, source)
    elif form == "safetensors":
        source = tmp_path / "w.safetensors"
        save_file(dict(state), source)
    elif form == "order":
        torch.save({f"layer{i}": v for i, v in enumerate(state.values())}, source)
        notes = 1
    else:
        name = f"user_{form}"
        save_model(model, tmp_path / "saved")
        code = f"from trl.models import load_model\ndef make():\n    return load_model({str(tmp_path / 'saved')!r})\n"
        (tmp_path / f"{name}.py").write_text(code + "ready = make()\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", list(sys.path))  # the working directory is added to it
        source, architecture = Path(f"{name}:{'make' if form == 'function' else 'ready'}"), None
    opened, said = open_model(str(source), architecture, SHAPE)
    x = torch.rand(5, *SHAPE)
    assert torch.equal(opened(x), model(x))
    assert not opened.training
    assert len(said) == notes
    assert all("matched by order and shape" in note for note in said)


def test_safetensors_are_never_matched_by_order(tmp_path: Path) -> None:
    save_file({f"layer{i}": v for i, v in enumerate(network().state_dict().values())}, tmp_path / "w.safetensors")
    with pytest.raises(TrlError, match=r"w\.safetensors: does not match mlp.* at .*must use the model's names"):
        open_model(str(tmp_path / "w.safetensors"), "mlp:width=16", SHAPE)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("source", "architecture", "message"),
    [
        ("nowhere", None, "no model 'nowhere'; give a folder"),
        ("absent.pth", None, "absent.pth: cannot be read"),
        ("absent.safetensors", None, "absent.safetensors: cannot be read"),
        ("good.pth", None, "holds only weights; give --architecture, one of deep_pursuit, mlp, "),
        ("good.pth", "vit", "unknown model 'vit'; known: deep_pursuit, mlp"),
        ("good.pth", "mlp:widht=16", "mlp: widht: unknown key; allowed: width, depth"),
        ("good.pth", "mlp:width=17", r"good.pth: does not match mlp:width=17 .* expected body.1.weight \[17, 64\]"),
        ("good.pth", "mlp:width=16,depth=3", "missing body.5.weight, body.5.bias; give its options"),
        ("nan.pth", "mlp:width=16", "nan.pth: 'head.bias' holds NaN"),
        ("list.pth", "mlp", "list.pth: no state dict"),
        ("evil.pth", "mlp", "evil.pth: holds unsafe objects, which are not loaded"),
        ("text.pth", "mlp", "text.pth: "),
        ("text.safetensors", "mlp", "text.safetensors: damaged"),
        ("empty_folder", None, "config.json: cannot be read"),
        ("no_such_module:make", None, "no_such_module:make: ModuleNotFoundError: No module named 'no_such_module'$"),
        ("collections:make", None, "collections:make: AttributeError"),
        ("collections:OrderedDict", None, "returns a OrderedDict, not a torch.nn.Module"),
        ("user_broken:make", None, r"user_broken:make: ValueError: no luck .*user_broken.py:2"),
        ("user_script:make", None, r"user_script:make: SystemExit: give DATA .*user_script.py:2"),
    ],
)
def test_what_is_no_model_is_one_line(
    source: str, architecture: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    state = network().state_dict()
    torch.save(state, "good.pth")
    torch.save(state | {"head.bias": torch.full((10,), torch.nan)}, "nan.pth")
    torch.save([torch.ones(2)], "list.pth")
    Path("evil.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("text.pth", "text.safetensors"):
        Path(name).write_text("hello")
    Path("user_broken.py").write_text("def make():\n    raise ValueError('no\\nluck')\n")
    Path("user_script.py").write_text("import sys\nsys.exit('give DATA')\n")
    Path("empty_folder").mkdir()
    with pytest.raises(TrlError, match=message) as error:
        open_model(source, architecture, SHAPE)
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_images_in_a_file(suffix: str, tmp_path: Path) -> None:
    test, path = load_dataset("digits").test, tmp_path / f"images.{suffix}"
    if suffix == "npz":
        np.savez(path, images=test.images.numpy(), labels=test.labels.numpy())
    else:
        save_file({"images": test.images, "labels": test.labels}, path)
    named, filed = open_images("digits", 20), open_images(str(path), 20)
    assert torch.equal(named.images, filed.images)
    assert torch.equal(named.labels, filed.labels)
    assert (len(filed.images), named.classes, filed.classes) == (20, 10, None)
    assert len(open_images(str(path)).images) == 450


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar", "unknown data set 'cifar'; known: cifar10, .*; or give a .safetensors or .npz file"),
        ("absent.npz", "absent.npz: cannot be read"),
        ("absent.safetensors", "absent.safetensors: cannot be read"),
        (
            "names.npz",
            r"names.npz: no images and no labels; it holds x \[2\], y \[2\], z \(Python objects\); save it again",
        ),
        ("objects.npz", "objects.npz: not a .npz file of numbers"),
        ("array.npz", "array.npz: not a .npz file of numbers"),
        ("text.npz", "text.npz: not a .npz file of numbers"),
        ("half.safetensors", r"half.safetensors: no labels; it holds images \[2, 1, 8, 8\]"),
        ("grey.npz", r"grey.npz: images \[2, 8, 8\] have no channel dimension; save images\[:, None\]"),
        ("last.npz", r"last.npz: images \[2, 8, 8, 3\] have their channels last; save images.transpose\(0, 3, 1, 2\)"),
        ("soft.npz", r"soft.npz: labels \[2, 2\]: give one class number per image, such as labels.argmax\(1\)"),
    ],
)
def test_what_are_no_images_is_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("names.npz", x=np.ones(2), y=np.ones(2), z=np.array([Evil()], dtype=object))
    np.savez("objects.npz", images=np.array([Evil()], dtype=object), labels=np.ones(1))
    np.savez("grey.npz", images=np.ones((2, 8, 8)), labels=np.ones(2))
    np.savez("last.npz", images=np.ones((2, 8, 8, 3)), labels=np.ones(2))
    np.savez("soft.npz", images=np.ones((2, 1, 8, 8)), labels=np.array([[0.5, 0.5], [0, 1]]))
    with Path("array.npz").open("wb") as file:
        np.save(file, np.ones(2))
    Path("text.npz").write_text("hello")
    save_file({"images": torch.rand(2, 1, 8, 8)}, "half.safetensors")
    with pytest.raises(TrlError, match=message) as error:
        open_images(source)
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("form", ["column", "one-hot", "one-hot floats", "floats", "big-endian"])
def test_labels_that_say_one_class_are_class_numbers(form: str, tmp_path: Path) -> None:
    numbers = np.array([2, 0, 1, 1])
    labels = {
        "column": numbers[:, None],
        "one-hot": np.eye(3, dtype=bool)[numbers],
        "one-hot floats": np.eye(3)[numbers],
        "floats": numbers.astype(np.float32),
        "big-endian": numbers.astype(">i4"),
    }[form]
    np.savez(tmp_path / "images.npz", images=np.ones((4, 1, 8, 8), ">f4"), labels=labels)
    found = open_images(str(tmp_path / "images.npz"))
    assert found.labels.tolist() == numbers.tolist()
    assert not found.labels.is_floating_point()
    assert float(found.images.mean()) == 1.0


def test_a_model_of_python_keeps_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Dropout(), nn.Flatten().eval())\n"
    (tmp_path / "with_dropout.py").write_text(code)
    model, _ = open_model("with_dropout:make", None, SHAPE)
    assert [part.training for part in model.children()] == [True, False]


def test_the_key_of_a_model_in_python_is_of_all_code_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper, keys = tmp_path / "beside_the_model.py", []
    factory = "import torch\nfrom beside_the_model import SIZE\n\ndef make():\n    return torch.nn.Linear(SIZE, 2)\n"
    (tmp_path / "in_two_files.py").write_text(factory)
    for content in ("SIZE = 3\n", "SIZE = 3  # once more\n", "SIZE = 3\n"):
        helper.write_text(content)
        model, _ = open_model("in_two_files:make", None, (1, 4, 4))
        keys.append(model_key("in_two_files:make", model))
    assert keys[0] == keys[2] != keys[1]
