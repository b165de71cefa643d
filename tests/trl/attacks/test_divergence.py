"""PGD on the KL divergence from the clean prediction: the inner maximisation of TRADES."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from trl.attacks import Misclassified, Targeted, fgsm, pgd
from trl.common.errors import TrlError
from trl.threat import L2, Linf


def problem(n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4)).double()
    return model.eval(), torch.rand(n, 1, 4, 4, dtype=torch.float64), torch.randint(4, (n,))


def released(model: nn.Module, x: Tensor, epsilon: float, steps: int, step_size: float) -> Tensor:
    """The loop of the released code of TRADES, in linf."""
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = kl_div(log_softmax(model(x_adv), 1), softmax(model(x), 1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv


def divergence(model: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
    p, q = softmax(model(x), 1), softmax(model(x_adv), 1)
    return (p * (p / q).log()).sum(1).detach()


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_it_is_the_loop_of_the_released_code(steps: int) -> None:
    model, x, y = problem()
    torch.manual_seed(1)
    expected = released(model, x, 0.1, steps, 0.03)
    torch.manual_seed(1)
    found = pgd(model, x, y, Linf(0.1), loss="kl", random_start=False, steps=steps, step_size=0.03)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_labels_play_no_part() -> None:
    model, x, y = problem()
    found = []
    for labels in (y, (y + 1) % 4):
        torch.manual_seed(1)
        found.append(pgd(model, x, labels, Linf(0.1), loss="kl", random_start=False))
    assert torch.equal(*found)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.3)], ids=str)
@pytest.mark.parametrize("random_start", [True, False])
def test_restarts_keep_the_largest_divergence_of_each_sample(threat: Linf | L2, random_start: bool) -> None:
    model, x, _ = problem(40)
    y = model(x).argmax(1)
    y[::2] = (y[::2] + 1) % 4  # these are successes at once, so that later restarts run on some rows only
    found = []
    for restarts in (1, 2, 6):
        torch.manual_seed(3)
        options = {"loss": "kl", "random_start": random_start, "restarts": restarts, "steps": 2}
        found.append(divergence(model, x, pgd(model, x, y, threat, **options)))
    left = model(x).argmax(1) == y
    assert (found[1][left] >= found[0][left] - 1e-12).all()
    assert (found[2][left] >= found[1][left] - 1e-12).all()
    assert (found[0] > divergence(model, x, fgsm(model, x, y, Linf(0.0)))).all()


def test_it_starts_inside_a_small_ball() -> None:
    model, x, y = problem()
    for epsilon in (0.0, 1e-4):
        x_adv = pgd(model, x, y, Linf(epsilon), Misclassified(), loss="kl", random_start=False, steps=1, step_size=1e-9)
        assert (x_adv - x).abs().max() <= epsilon + 1e-12


def test_a_target_is_refused() -> None:
    model, x, y = problem()
    with pytest.raises(TrlError, match="loss kl leads away from the prediction at x, towards no target"):
        pgd(model, x, y, Linf(0.1), Targeted(), loss="kl")
