import torch
from torch import Tensor

from trl.attacks.losses import LOSSES, cw_margin, dlr


def naive_margin(z: list[float], y: int) -> float:
    return max(v for j, v in enumerate(z) if j != y) - z[y]


def naive_dlr(z: list[float], y: int) -> float:
    first, _, third = sorted(z, reverse=True)[:3]
    return naive_margin(z, y) / (first - third)


def samples(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 5 * torch.randn(20, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (20,), generator=generator)


def test_against_naive_loops() -> None:
    for classes in (2, 3, 10, 200):
        logits, y = samples(classes)
        rows = list(zip(logits.tolist(), y.tolist(), strict=True))
        expected = {
            "ce": torch.tensor([-torch.tensor(z, dtype=torch.float64).softmax(0)[t].log() for z, t in rows]).double(),
            "cw": torch.tensor([naive_margin(z, t) for z, t in rows]).double(),
            "dlr": torch.tensor([naive_dlr(z, t) if classes > 2 else naive_margin(z, t) for z, t in rows]).double(),
        }
        for name, loss in LOSSES.items():
            torch.testing.assert_close(loss(logits, y), expected[name], rtol=1e-5, atol=1e-6)


def test_margin_and_dlr_are_positive_exactly_where_misclassified() -> None:
    for classes in (2, 3, 10):
        logits, y = samples(classes)
        for loss in (cw_margin, dlr):
            assert torch.equal(loss(logits, y) > 0, logits.argmax(1) != y)


def test_dlr_does_not_depend_on_shift_and_scale() -> None:
    for classes in (3, 10):
        logits, y = samples(classes)
        torch.testing.assert_close(dlr(1000 * logits + 7, y), dlr(logits, y))


def test_dlr_still_has_a_gradient_with_two_classes_and_is_finite_at_a_tie() -> None:
    logits = torch.tensor([[1.0, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(dlr(logits, torch.tensor([0])).sum(), logits)
    assert gradient.tolist() == [[-1.0, 1.0]]
    tied = torch.zeros(1, 3, requires_grad=True)
    value = dlr(tied, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value.sum(), tied)
    assert value.item() == 0
    assert gradient.isfinite().all()
