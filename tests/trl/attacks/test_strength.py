"""How strong the attacks are, on small networks: restarts, steps, and one attack beside another."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.digits_network import correct, train
from trl.attacks import bim, build_attack, cw, fgsm, mim, pgd
from trl.threat import L2, Linf, Threat


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    return train(width=64, images=400)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)])
def test_iterative_attacks_beat_fgsm_and_fgsm_beats_noise(
    trained: tuple[nn.Module, Tensor, Tensor], threat: Threat
) -> None:
    model, x, y = trained
    clean = correct(model, x, y).float().mean()
    noise = correct(model, threat.random_start(x), y).float().mean()
    one_step = correct(model, fgsm(model, x, y, threat), y).float().mean()
    assert clean > 0.9
    assert one_step < noise - 0.2
    for attack in (bim, pgd, cw, mim):
        assert correct(model, attack(model, x, y, threat, steps=30), y).float().mean() <= one_step
    assert correct(model, pgd(model, x, y, threat, steps=30), y).float().mean() < one_step


def test_huge_epsilon_fools_always_and_pgd_gains_with_epsilon(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    accuracies = [correct(model, pgd(model, x, y, Linf(e)), y).float().mean() for e in (0.0, 0.03, 0.06, 0.12, 10.0)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == correct(model, x, y).float().mean()
    assert accuracies[-1] == 0


@pytest.mark.parametrize("loss", ["ce", "cw", "dlr"])
@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.45)])
def test_restarts_only_ever_add(trained: tuple[nn.Module, Tensor, Tensor], threat: Threat, loss: str) -> None:
    """With one seed, the first restarts of a longer run are those of the shorter one."""
    model, x, y = trained
    survivors = []
    for restarts in (1, 2, 4, 8):
        torch.manual_seed(0)
        x_adv = build_attack("pgd", threat, steps=2, restarts=restarts, loss=loss)(model, x, y)
        survivors.append(correct(model, x_adv, y))
    for fewer, more in pairwise(survivors):
        assert (more <= fewer).all()  # sample by sample
    assert survivors[-1].sum() < survivors[0].sum()


class Recorder(nn.Module):
    """Notes the size of each batch it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.sizes = inner, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


def test_later_restarts_run_on_what_is_left(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    recorder = Recorder(model)
    pgd(recorder, x, y, Linf(0.06), steps=3, restarts=1)
    assert recorder.sizes == [len(x)] * 3  # nothing but the gradients

    recorder.sizes.clear()
    torch.manual_seed(0)
    pgd(recorder, x, y, Linf(0.06), steps=3, restarts=2)
    torch.manual_seed(0)
    left = int(correct(model, pgd(model, x, y, Linf(0.06), steps=3), y).sum())
    assert 0 < left < len(x)
    assert recorder.sizes == [len(x)] * 4 + [left] * 4

    recorder.sizes.clear()
    pgd(recorder, x, y, Linf(1.0), restarts=5)
    assert recorder.sizes == [len(x)] * 21  # nothing left to do


def test_a_fooling_image_is_kept_and_else_the_highest_loss(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    torch.manual_seed(0)
    first = pgd(model, x, y, Linf(0.06), steps=2)
    torch.manual_seed(0)
    best = pgd(model, x, y, Linf(0.06), steps=2, restarts=6)
    fooled = ~correct(model, first, y)
    assert fooled.any()
    assert torch.equal(best[fooled], first[fooled])
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(model(i), y, reduction="none") for i in (first, best))
    still = correct(model, best, y)
    assert (after[still] >= before[still] - 1e-6).all()
    assert (after[still] > before[still] + 1e-4).any()


class Lottery(nn.Module):
    """Values below ½ are classified as 0, though barely; those above as 1, and with a lower loss for class 0."""

    def forward(self, x: Tensor) -> Tensor:
        barely = torch.tensor([0.1] + 9 * [0.0])
        mistaken = torch.tensor([0.0, 0.1] + 8 * [-9.0])
        return torch.where(x < 0.5, barely, mistaken) + 0 * x


def test_a_fooling_image_wins_over_a_higher_loss() -> None:
    x, y = torch.full((1000, 1), 0.5), torch.zeros(1000, dtype=torch.long)
    model = Lottery()
    for restarts in (1, 2, 4):
        x_adv = pgd(model, x, y, Linf(0.4), steps=1, restarts=restarts)
        assert correct(model, x_adv, y).float().mean().item() == pytest.approx(0.5**restarts, abs=0.05)


def test_random_start_differs_and_bim_is_pgd_without_it(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    assert not torch.equal(pgd(model, x, y, Linf(0.1)), pgd(model, x, y, Linf(0.1)))
    assert torch.equal(bim(model, x, y, Linf(0.1)), pgd(model, x, y, Linf(0.1), random_start=False))
    torch.manual_seed(1)
    margin = cw(model, x, y, Linf(0.1))
    torch.manual_seed(1)
    assert torch.equal(margin, pgd(model, x, y, Linf(0.1), loss="cw"))
