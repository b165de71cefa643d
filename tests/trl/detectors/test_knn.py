import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.helpers.natural_embeddings import embeddings
from trl.detectors import build_detector, neighbours


@pytest.mark.parametrize("k", [1, 5, 90, 500])
@pytest.mark.parametrize("pairs", [1, 1000, 2**24])
def test_score_is_the_distance_to_the_kth_nearest(k: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PAIRS", pairs)
    train, labels = embeddings()
    test = torch.cat([train - 1, torch.randn(20, 6, generator=torch.Generator().manual_seed(1))])
    unit = [row / np.linalg.norm(row) for row in train.double().numpy()]
    expected = [
        sorted(np.linalg.norm(h / np.linalg.norm(h) - row) for row in unit)[min(k, 90) - 1]
        for h in test.double().numpy()
    ]
    detector = build_detector("knn", neighbours=k).fit(train, labels)
    np.testing.assert_allclose(detector.score(test).numpy(), expected, rtol=1e-6)


def test_only_the_direction_counts() -> None:
    train, labels = embeddings()
    detector = build_detector("knn").fit(train, labels)
    torch.testing.assert_close(detector.score(100 * (train - 1)), detector.score(train - 1), rtol=1e-5, atol=0)
    assert (build_detector("knn", neighbours=1).fit(train, labels).score(3 * train) < 1e-6).all()
    assert detector.score(-train).max() <= 2


def test_gradients_are_finite_at_natural_and_at_zero_embeddings() -> None:
    train, labels = embeddings()
    train = normalize(train.double())
    train[0] = 0
    h = train.clone().requires_grad_()
    detector = build_detector("knn", neighbours=1).fit(train, labels)
    scores = detector.score(h)
    torch.testing.assert_close(scores, torch.zeros(90, dtype=torch.float64), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(scores.sum(), h)
    assert gradient.isfinite().all()
