"""A published robust network (Wong, Rice & Kolter 2020), and its accuracies on the first 1,000 MNIST test images."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trl.attacks import apgd, apgd_t, fab_t, pgd, square
from trl.data import load_dataset
from trl.models import build_model
from trl.threat import Linf

RAW = os.environ.get("TRL_RAW_DATA")
pytestmark = pytest.mark.skipif(RAW is None, reason="needs TRL_RAW_DATA, a folder with mnist/ and models/")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    weights = torch.load(
        Path(RAW or "") / "models/fast_adversarial_mnist/fgsm.pth", map_location="cpu", weights_only=True
    )
    model = build_model("strided_cnn", 10, (1, 28, 28))
    names = model.state_dict().keys()  # the same layers in the same order under other names
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return model.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    test = load_dataset("mnist").test
    return test.images[:1000].float() / 255, test.labels[:1000]


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * (network(x).argmax(1) == y).float().mean().item()


def test_clean(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    assert accuracy(network, *images) == pytest.approx(98.3, abs=0.01)


def test_pgd_50_with_restarts(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """The known figures are one draw, 89.8 / 88.9 / 88.4. Ours may be lower, a stronger attack, but hardly higher.

    Over 8 seeds, ours are 89.5 / 88.2 / 87.6 on average, with a standard deviation of 0.3 for one choice of seeds; the
    paper's own loop (a sample stops at its first mistake, the highest loss is kept) gives 89.4 / 88.3 / 87.8.
    A later restart runs on the images that are still classified correctly: its batches tell the accuracy before it.
    """
    sizes: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    torch.manual_seed(0)
    x_adv = pgd(network, *images, Linf(0.3), steps=50, step_size=0.01, restarts=3)
    hook.remove()
    assert len(sizes) == 3 * 51
    measured = [sizes[51] / 10, sizes[102] / 10, accuracy(network, x_adv, images[1])]
    for ours, known in zip(measured, (89.8, 88.9, 88.4), strict=True):
        assert known - 1.5 <= ours <= known + 0.6
    assert measured[0] > measured[1] > measured[2]


def test_apgd(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """APGD-CE leaves 84.7 % of the 1,000 images, then APGD-T 83.0; of these 250 86.8, then 85.4 in fewer steps.

    Ours, whose APGD-T follows gradients with noise, leaves 84.0 then: less, by what it finds behind masked gradients.
    """
    x, y = (t[:250] for t in images)
    torch.manual_seed(0)
    x_adv = apgd(network, x, y, Linf(0.3))
    untargeted = accuracy(network, x_adv, y)
    assert 85.9 <= untargeted <= 87.3
    with torch.no_grad():
        left = network(x_adv).argmax(1) == y
    x_adv[left] = apgd_t(network, x[left], y[left], Linf(0.3), steps=50, targets=5)
    assert 83.0 <= accuracy(network, x_adv, y) <= min(85.4, untargeted - 0.3)


def test_fab_t(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """With 2 of 9 targets, FAB-T leaves 88.0 % of 250 images (87.6 with 9), and needs 0.317 for half of the first 50.

    The authors' code, whose search is the one of the paper, needs 0.327 for the same half.
    """
    x, y = (t[:250] for t in images)
    x_adv = fab_t(network, x, y, Linf(0.3), targets=2)
    assert accuracy(network, x_adv, y) <= 88.4
    whole_box = Linf(1.0)
    x_adv = fab_t(network, x[:50], y[:50], whole_box, targets=3, minimize=True)
    assert accuracy(network, x_adv, y[:50]) == 0
    assert 0.30 <= whole_box.distance(x_adv, x[:50]).median() <= 0.327


def test_square(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """The public implementation, with 200 queries for the first 100 images, leaves 91.6 % over 16 seeds; ours 89.8."""
    x, y = (t[:100] for t in images)
    torch.manual_seed(0)
    x_adv = square(network, x, y, Linf(0.3), queries=200)
    assert 87.5 <= accuracy(network, x_adv, y) <= 91.5
