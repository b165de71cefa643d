import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf, ShrunkCovariance

from tests.helpers.natural_embeddings import embeddings
from trl.detectors import build_detector
from trl.detectors.density import FLOOR


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.4])
@pytest.mark.parametrize("n", [12, 90])
def test_score_is_the_least_distance(shrinkage: float | None, n: int) -> None:
    train, labels = embeddings(n)
    test = train - 1
    rows = [train[labels == k].double().numpy() for k in range(3)]
    centred = np.concatenate([row - row.mean(0) for row in rows])
    unit = np.sqrt(centred.var(0) + FLOOR * centred.var(0).mean())
    estimator = LedoitWolf if shrinkage is None else lambda **k: ShrunkCovariance(shrinkage=shrinkage, **k)
    sigma = estimator(assume_centered=True).fit(centred / unit).covariance_
    sigma += FLOOR * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    precision = np.linalg.inv(sigma * np.outer(unit, unit))
    expected = [min((h - row.mean(0)) @ precision @ (h - row.mean(0)) for row in rows) for h in test.double().numpy()]
    detector = build_detector("mahalanobis", shrinkage=shrinkage).fit(train, labels)
    np.testing.assert_allclose(detector.score(test).numpy(), expected, rtol=1e-6)


def test_without_shrinkage_it_is_the_empirical_covariances() -> None:
    train, labels = embeddings(300)
    means = torch.stack([train[labels == k].mean(0) for k in range(3)]).double()
    centred = train.double() - means[labels]
    precision = torch.linalg.inv(centred.T @ centred / len(train))
    gaps = (train - 1).double()[:, None] - means
    expected = torch.einsum("nkd,de,nke->nk", gaps, precision, gaps).amin(1)
    scores = build_detector("mahalanobis", shrinkage=0.0).fit(train, labels).score(train - 1)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=0)


def test_the_scale_of_a_layer_does_not_matter() -> None:
    train, labels = embeddings(60)
    scales = torch.tensor([0.1, 0.1, 1, 1, 10, 10])
    one = build_detector("mahalanobis").fit(train, labels).score(train - 1)
    other = build_detector("mahalanobis").fit(train * scales, labels).score((train - 1) * scales)
    torch.testing.assert_close(one, other, rtol=2e-2, atol=0)
    # Ledoit and Wolf's shrinkage alone would change it
    plain = build_detector("gaussian", covariance="tied")
    one, other = (plain.fit(train * s, labels).score((train - 1) * s) for s in (torch.ones(6), scales))
    assert (one - one.mean() - other + other.mean()).abs().max() > 0.5 * one.std()
