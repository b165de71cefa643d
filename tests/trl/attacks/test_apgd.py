"""APGD against its algorithm written out, against PGD, and what it promises for samples that are done."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.digits_network import correct, train
from trl.attacks import Misclassified, Targeted, apgd, apgd_t, build_attack, pgd
from trl.attacks.apgd import targeted_dlr
from trl.common.errors import TrlError
from trl.threat import L1, L2, Linf, Threat


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    return train(width=32, images=200)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def robust(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return correct(model, x, y).float().mean().item()


class Recorder(nn.Module):
    """Notes the batches it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.inner(x)
        return logits


class Wave(nn.Module):
    """Two logits whose difference has many local maxima and never changes its sign: class 0 is always right."""

    def forward(self, x: Tensor) -> Tensor:
        height = (torch.sin(9 * x) + torch.sin(23 * x + 1) / 2).sum(1) / 10
        return torch.stack([1 - height, height], 1)


@pytest.mark.parametrize("steps", [10, 50, 100])
def test_iterates_are_those_of_the_algorithm(steps: int) -> None:
    """Croce & Hein 2020, algorithm 1, for one sample at a time and with all of its history."""
    epsilon, n = 0.4, 6
    x = torch.rand(n, 3, dtype=torch.float64)
    recorder = Recorder(Wave())
    result = apgd(recorder, x, torch.zeros(n, dtype=torch.long), Linf(epsilon), steps=steps, loss="cw")
    looked_at = torch.stack(recorder.seen[1 : steps + 2])  # the first is x, the last the result

    def loss(point: Tensor) -> tuple[float, Tensor]:
        point = point.clone().requires_grad_()
        logits = Wave()(point[None])[0]
        margin = logits[1] - logits[0]
        return margin.item(), torch.autograd.grad(margin, point)[0]

    checkpoints = [0]
    period = max(int(0.22 * steps), 1)
    while checkpoints[-1] <= steps:
        checkpoints.append(checkpoints[-1] + period)
        period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    halvings = 0
    for i in range(n):

        def project(point: Tensor, i: int = i) -> Tensor:
            return point.clamp(x[i] - epsilon, x[i] + epsilon).clamp(0, 1)

        points, size = [looked_at[0, i]], 2 * epsilon
        values = [loss(points[0])[0]]
        previous = current = points[0]
        sizes, best_values = list[float](), [values[0]]  # in the periods so far
        for k in range(steps):
            ahead = project(current + size * loss(current)[1].sign())
            if k > 0:
                ahead = project(current + 0.75 * (ahead - current) + 0.25 * (current - previous))
            previous, current = current, ahead
            torch.testing.assert_close(looked_at[k + 1, i], current)
            points.append(current)
            values.append(loss(current)[0])
            if k + 1 in checkpoints:
                start = checkpoints[checkpoints.index(k + 1) - 1]
                rises = sum(values[j + 1] > values[j] for j in range(start, k + 1))
                best_values.append(max(values))
                unchanged = sizes[-1:] == [size] and best_values[-1] == best_values[-2]
                sizes.append(size)
                if rises <= 0.75 * (k + 1 - start) or unchanged:
                    size, halvings = size / 2, halvings + 1
                    current = points[values.index(max(values))]
        torch.testing.assert_close(result[i], points[values.index(max(values))])
    assert halvings > n


@pytest.mark.parametrize("threat", [Linf(0.08), L2(0.5), L1(2.0)])
def test_no_weaker_than_pgd_with_the_same_budget(trained: tuple[nn.Module, Tensor, Tensor], threat: Threat) -> None:
    model, x, y = trained
    ours = robust(model, apgd(model, x, y, threat, steps=40), y)
    assert 0.05 < ours < robust(model, x, y) - 0.2
    assert ours <= robust(model, pgd(model, x, y, threat, steps=41), y) + 0.005
    targeted = robust(model, apgd_t(model, x, y, threat, steps=40), y)
    assert targeted <= ours + 0.01


@pytest.mark.parametrize("loss", ["ce", "dlr", "cw"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.45), L1(1.5)])
def test_restarts_only_ever_add(trained: tuple[nn.Module, Tensor, Tensor], threat: Threat, loss: str) -> None:
    """With one seed, the first restarts of a longer run are those of the shorter one."""
    model, x, y = trained
    survivors = []
    for restarts in (1, 3, 9):
        torch.manual_seed(0)
        x_adv = build_attack("apgd", threat, steps=1, restarts=restarts, loss=loss)(model, x, y)
        survivors.append(correct(model, x_adv, y))
    for fewer, more in pairwise(survivors):
        assert (more <= fewer).all()  # sample by sample
    assert survivors[-1].sum() < survivors[0].sum()


@pytest.mark.parametrize("threat", [Linf(0.08), L2(0.6), L1(3.0)])
def test_samples_that_are_done_are_dropped(trained: tuple[nn.Module, Tensor, Tensor], threat: Threat) -> None:
    model, x, y = trained
    recorder = Recorder(model)
    x_adv = apgd(recorder, x, y, threat, steps=50)
    mistaken = ~correct(model, x, y)
    assert mistaken.any()
    assert torch.equal(x_adv[mistaken], x[mistaken])
    sizes = [len(batch) for batch in recorder.seen]
    assert sizes[1] == len(x) - mistaken.sum()
    assert sizes[-1] < sizes[1]
    assert sum(sizes) < 0.9 * 50 * sizes[1]

    recorder.seen.clear()
    apgd(recorder, x, y, Linf(1.0), restarts=5)
    assert len(recorder.seen) < 10  # nothing left to do


@pytest.mark.parametrize("attack", [apgd, apgd_t])
def test_what_autocast_takes_for_a_success_is_verified(attack: type) -> None:
    """Half precision rounds the logits to a tie for most images; only for images above 0.6 is class 1 really ahead."""

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = (x.sum(1) - 0.6) / 1e4
            if torch.is_autocast_enabled("cpu"):
                margin = margin.detach() * 0 + 1 + 0 * margin
            return torch.stack([torch.zeros_like(margin), margin], 1)

    x, y = torch.tensor([[0.3], [0.45], [0.7]]), torch.zeros(3, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = attack(Rounded(), x, y, Linf(0.1), steps=8)
    assert torch.equal(correct(Rounded(), x_adv, y), torch.tensor([True, True, False]))


@pytest.mark.parametrize("threat", [Linf(0.3), L2(2.5), L1(9.0)])
@pytest.mark.parametrize("loss", ["ce", "dlr", "cw"])
def test_reaches_a_target_class(trained: tuple[nn.Module, Tensor, Tensor], threat: Threat, loss: str) -> None:
    model, x, y = trained
    target = (y + 1) % 10
    x_adv = build_attack("apgd", threat, Targeted(), loss=loss, steps=30)(model, x, target)
    assert robust(model, x_adv, target) > (0.6 if loss == "dlr" else 0.95)  # DLR is flat where the target ranks third
    untargeted = build_attack("apgd", threat, Misclassified(), loss=loss, steps=30)(model, x, y)
    assert robust(model, untargeted, target) < 0.8


def test_the_targeted_form_takes_no_target() -> None:
    with pytest.raises(TrlError, match="apgd_t picks its own target classes; use apgd"):
        apgd_t(nn.Linear(2, 3), torch.rand(4, 2), torch.zeros(4, dtype=torch.long), Linf(0.1), Targeted())


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10])
def test_targeted_dlr(classes: int) -> None:
    logits = 5 * torch.randn(30, classes, dtype=torch.float64)
    y = torch.randint(classes, (30,))
    target = (y + torch.randint(1, classes, (30,))) % classes
    for z, i, t, value in zip(logits.tolist(), y, target, targeted_dlr(logits, y, target), strict=True):
        top = sorted(z, reverse=True)
        divisor = top[0] - (top[2] + top[3]) / 2 if classes > 3 else 1
        assert value.item() == pytest.approx((z[t] - z[i]) / divisor)


@pytest.mark.parametrize(("classes", "targets", "runs"), [(2, 9, 1), (3, 9, 2), (10, 4, 4), (200, 9, 9)])
def test_runs_towards_the_likeliest_other_classes(classes: int, targets: int, runs: int) -> None:
    """No image here is ever misclassified, and each run climbs towards its own class."""
    weight = torch.randn(classes, 20, dtype=torch.float64)
    model = nn.Linear(20, classes, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(-torch.arange(classes) / classes)
        model.bias[0] = 100
    recorder, x = Recorder(model), torch.rand(1, 20, dtype=torch.float64)
    steps = 10
    apgd_t(recorder, x, torch.zeros(1, dtype=torch.long), Linf(0.05), steps=steps, targets=targets)
    runs_seen = [recorder.seen[2 + i * (steps + 2) :][: steps + 2] for i in range(runs)]
    assert len(recorder.seen) == 2 + runs * (steps + 2)  # x for the verdict and for the classes; a start, a verdict
    order = model(x)[0, 1:].argsort(descending=True) + 1
    for run, target in zip(runs_seen, order, strict=False):
        margins = [(model(point)[0, target] - model(point)[0, 0]).item() for point in run]
        slope = (weight[target] - weight[0]).abs().sum() * 0.05
        assert margins[-1] == pytest.approx((model(x)[0, target] - model(x)[0, 0] + slope).item(), rel=2e-2)


def test_small_gradients_do_not_hold_the_targeted_form_in_place() -> None:
    """Each value but the first gains above 0.7, and below has a slight slope away from there, which APGD obeys."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = (10 * (x - 0.7).relu() - 1e-4 * x).sum(1) + 0.1 * x[:, 0] - 1000
            return torch.stack([torch.zeros_like(margin), margin], 1)

    x, y = torch.full((10, 50), 0.5), torch.zeros(10, dtype=torch.long)
    high = [(attack(Masked(), x, y, Linf(0.3)) > 0.79).float().mean() for attack in (apgd, apgd_t)]
    assert high[0] < 0.3
    assert high[1] > 0.9


def test_under_autocast_the_second_half_is_in_full_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x, seen = torch.rand(6, 1, 4, 4), []
    y = model(x).argmax(1)
    model[-1].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        apgd(model, x, y, Linf(1e-4), steps=40)
    searched = seen[1:-1]  # between the verdicts on x and on the result
    assert searched[:21] == [torch.bfloat16] * 21  # the start and 20 steps
    assert set(searched[21:]) == {torch.float32}
    assert len(searched) == 1 + 40 + 1  # and the best iterate once more
