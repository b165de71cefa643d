"""Adversarials made elsewhere: on another model, or stored in a file."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.masked_models import THREAT, Quantised, Saturated, robust, trained
from trl.attacks import build_attack, pgd
from trl.attacks.transfer import from_file, from_model
from trl.common.errors import TrlError
from trl.data import load_dataset
from trl.evaluation import evaluate
from trl.evaluation.state import Description


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


# --- from another model


@pytest.mark.parametrize("mask", [Quantised, Saturated])
def test_what_fools_the_unmasked_network_fools_the_masked_one(mask: type[nn.Module]) -> None:
    model, x, y = trained()
    masked = mask(model)
    torch.manual_seed(0)
    blind = robust(masked, pgd(masked, x, y, THREAT), y)
    transferred = robust(masked, from_model(model, build_attack("pgd", THREAT))(masked, x, y), y)
    assert blind > 0.8
    assert transferred < robust(model, pgd(model, x, y, THREAT), y) + 0.05


def test_it_is_the_attack_on_the_surrogate_and_the_model_is_never_asked() -> None:
    surrogate, x, y = trained()
    torch.manual_seed(1)
    expected = pgd(surrogate, x, y, THREAT)
    torch.manual_seed(1)
    assert torch.equal(from_model(surrogate, build_attack("pgd", THREAT))(nn.Module(), x, y), expected)


def test_an_attack_of_others_meets_a_frozen_surrogate_in_eval_mode_with_gradients_on() -> None:
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout()).train()
    seen = []

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append((model.training, any(p.requires_grad for p in model.parameters()), torch.is_grad_enabled()))
        return x.requires_grad_() * 1.0

    _, x, y = trained()
    x_adv = from_model(surrogate, attack)(nn.Module(), x.clone(), y)
    assert seen == [(False, False, True)]
    assert not x_adv.requires_grad
    assert surrogate.training
    assert all(p.requires_grad for p in surrogate.parameters())


def test_a_resumed_evaluation_can_tell_two_surrogates_apart() -> None:
    attack = build_attack("pgd", THREAT)
    described = Description().text(from_model(linear(), attack))
    assert described == Description().text(from_model(linear(), build_attack("pgd", THREAT)))
    assert described != Description().text(from_model(linear(1), attack))
    assert described != Description().text(from_model(linear(), build_attack("pgd", THREAT, steps=7)))


# --- from a file


def write(path: Path, images: Tensor) -> Path:
    if path.suffix == ".safetensors":
        save_file({"adversarials": images, "correct.clean": torch.ones(len(images), dtype=torch.bool)}, path)
    elif path.suffix == ".npy":
        np.save(path, images.numpy())
    else:
        np.savez(path, x_adv=images.numpy())
    return path


@pytest.fixture
def adversarials() -> Tensor:
    model, x, y = trained()
    torch.manual_seed(0)
    return pgd(model, x, y, THREAT)


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".npz"])
def test_rows_are_found_again_in_any_order_and_number(tmp_path: Path, adversarials: Tensor, suffix: str) -> None:
    model, x, y = trained()
    attack = from_file(write(tmp_path / f"stored{suffix}", adversarials), x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:77]
    assert torch.equal(attack(model, x[order], y[order]), adversarials[order])
    found = attack(model, x[order].double(), y[order])
    assert torch.equal(found, adversarials[order].double())
    assert attack(model, x[:0], y[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_uint8_images_are_found_however_they_were_divided(tmp_path: Path, stored: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(128, 1, 1, 2)
    wanted = images.flip(0) if stored == torch.uint8 else images.flip(0) / 255
    attack = from_file(write(tmp_path / "stored.npy", wanted), images)
    for x in (images / 255, images * torch.tensor(1 / 255), (images.double() / 255).float()):
        torch.testing.assert_close(attack(nn.Module(), x, torch.zeros(128)), images.flip(0) / 255)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_of_any_float_type_are_found(tmp_path: Path, dtype: torch.dtype, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 3, 4, 4, dtype=torch.float64, generator=generator).to(dtype).to(memory_format=layout)
    wanted = x.float().flip(0)
    attack = from_file(write(tmp_path / "stored.safetensors", wanted.contiguous()), x)
    for images in (x, x.float(), x.contiguous()):
        assert torch.equal(attack(nn.Module(), images, torch.zeros(12)), wanted.to(images.dtype))


def test_images_that_differ_a_little_are_told_apart(tmp_path: Path) -> None:
    images = torch.stack([torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), 0.5001)])
    attack = from_file(write(tmp_path / "stored.npy", images.flip(0)), images)
    assert torch.equal(attack(nn.Module(), images, torch.zeros(2)), images.flip(0))


def test_equal_images_share_one_adversarial(tmp_path: Path) -> None:
    images, stored = torch.zeros(2, 1, 2, 2), torch.stack([torch.full((1, 2, 2), v) for v in (0.1, 0.2)])
    found = from_file(write(tmp_path / "stored.npy", stored), images)(nn.Module(), images, torch.zeros(2))
    assert torch.equal(found[0], found[1])


def test_evaluate_gives_the_accuracy_that_they_were_stored_with(tmp_path: Path) -> None:
    model = trained()[0]
    test = load_dataset("digits").test
    x, y = test.images[:200], test.labels[:200]
    first = evaluate(model, x, y, {"pgd": build_attack("pgd", THREAT)}, THREAT, batch_size=64)
    path = write(tmp_path / "stored.safetensors", first.adversarials)
    again = evaluate(model, x, y, {"stored": from_file(path, x)}, THREAT, batch_size=50)
    assert torch.equal(again.correct["stored"], first.correct["pgd"])
    far = from_file(write(tmp_path / "far.npy", 1 - x / 255), x)
    with pytest.raises(TrlError, match="leaves the linf ball"):
        evaluate(model, x, y, {"far": far}, THREAT)


def test_an_image_that_was_not_there(tmp_path: Path, adversarials: Tensor) -> None:
    model, x, y = trained()
    attack = from_file(write(tmp_path / "stored.npy", adversarials[:100]), x[:100])
    with pytest.raises(TrlError, match="not given to from_file"):
        attack(model, x[99:101], y[99:101])


@pytest.mark.parametrize("cut", [slice(0, 299), slice(0, 0)])
def test_a_file_of_another_shape(tmp_path: Path, adversarials: Tensor, cut: slice) -> None:
    path = write(tmp_path / "stored.npy", adversarials[cut])
    with pytest.raises(TrlError, match=r"for images \[300, 1, 8, 8\]; give the images"):
        from_file(path, trained()[1])


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def broken(folder: Path) -> dict[str, Path]:
    """Files that hold no adversarials, by what is wrong with them."""
    files = {
        name: folder / name for name in ("none.npy", "pickle.npy", "cut.npy", "cut.safetensors", "cut.npz", "x.pt")
    }
    whole = {suffix: write(folder / f"whole{suffix}", torch.rand(4, 3)) for suffix in (".npy", ".safetensors", ".npz")}
    for suffix, path in whole.items():
        files[f"cut{suffix}"].write_bytes(path.read_bytes()[:-20])
    files["pickle.npy"].write_bytes(pickle.dumps(Payload()))
    files["x.pt"].write_bytes(b"")
    files["objects.npy"] = folder / "objects.npy"
    np.save(files["objects.npy"], np.array([Payload()], dtype=object), allow_pickle=True)
    files["words.npy"] = folder / "words.npy"
    np.save(files["words.npy"], np.array(["a", "b"]))
    files["two.npz"] = folder / "two.npz"
    np.savez(files["two.npz"], a=np.zeros(1), b=np.zeros(1))
    files["integers.npy"] = folder / "integers.npy"
    np.save(files["integers.npy"], np.zeros((4, 3), dtype=np.int64))
    return files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npy", "cannot be read .No such file"),
        ("pickle.npy", "damaged"),
        ("objects.npy", "damaged"),
        ("words.npy", "damaged"),
        ("cut.npy", "damaged"),
        ("cut.safetensors", "damaged"),
        ("cut.npz", "damaged"),
        ("x.pt", "save the adversarial images as .safetensors, .npy or .npz"),
        ("two.npz", "holds a, b; name the array of images 'adversarials'"),
        ("integers.npy", "holds torch.int64; give uint8"),
    ],
)
def test_a_file_that_holds_none(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(TrlError, match=message) as error:
        from_file(broken(tmp_path)[name], torch.zeros(4, 3))
    assert "\n" not in str(error.value)


def test_a_resumed_evaluation_can_tell_two_files_apart(tmp_path: Path, adversarials: Tensor) -> None:
    x = trained()[1]
    names = [
        Description().text(from_file(write(tmp_path / "stored.npy", a), x)) for a in (adversarials, adversarials, x)
    ]
    assert names[0] == names[1] != names[2]
