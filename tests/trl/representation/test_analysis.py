import pytest
import torch
from torch import nn

from trl.detectors import Observed
from trl.representation.analysis import analyse
from trl.representation.shifts import knn_accuracy, shift_ratios


def test_every_analysis_is_of_the_same_images() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    x, labels = torch.rand(120, 1, 4, 4, generator=generator), torch.arange(120) % 3
    x_adv = (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    train, natural = Observed(model, x[:40], labels[:40]), Observed(model, x[40:], labels[40:])
    adversarial = natural.become(x_adv[40:])
    found = analyse(train, natural, adversarial, neighbours=5, samples=70, seed=1)

    (before, logits), (after, under) = natural.read(), adversarial.read()
    ratios = shift_ratios(before, labels[40:], after, labels[40:], under.argmax(1))
    assert (found.representation.r, found.representation.r_prime) == pytest.approx(tuple(ratios))
    assert found.knn.natural == knn_accuracy(train.read()[0], labels[:40], before, labels[40:], 5)
    assert found.knn.adversarial == knn_accuracy(train.read()[0], labels[:40], after, labels[40:], 5)

    first, second = found.tsne[:35], found.tsne[35:]
    assert [point.kind for point in found.tsne] == ["natural"] * 35 + ["adversarial"] * 35
    assert [point.label for point in first] == [point.label for point in second]
    guesses = {(int(y), int(a), int(b)) for y, a, b in zip(labels[40:], logits.argmax(1), under.argmax(1), strict=True)}
    assert {(a.label, a.predicted, b.predicted) for a, b in zip(first, second, strict=True)} <= guesses
    assert found == analyse(train, natural, adversarial, neighbours=5, samples=70, seed=1)
