import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from tests.helpers.natural_embeddings import embeddings
from trl.detectors import build_detector
from trl.detectors.density import FLOOR


def reference(rows: Tensor, components: int, covariance: str, test: Tensor) -> np.ndarray:
    """Log densities of scikit-learn's mixture of one class."""
    rows = rows.double().numpy()
    rows = rows[np.lexsort(rows.T[::-1])]
    floor = FLOOR * rows.var(0).mean()
    kind = {"full": "full", "diagonal": "diag"}[covariance]
    mixture = GaussianMixture(components, covariance_type=kind, reg_covar=floor, random_state=0)
    return mixture.fit(rows).score_samples(test.double().numpy())


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("components", [1, 2, 3])
@pytest.mark.parametrize("offset", [0, 1000])
def test_score_is_scikit_learns_largest_log_density(covariance: str, components: int, offset: float) -> None:
    train, labels = embeddings(150)
    train = 5 * train + offset
    test = torch.cat([train, train - 4 * torch.rand(train.shape, generator=torch.Generator().manual_seed(0))])
    detector = build_detector("gmm", components=components, covariance=covariance).fit(train, labels)
    densities = [reference(train[labels == k], components, covariance, test) for k in range(3)]
    np.testing.assert_allclose(detector.score(test).numpy(), -np.max(densities, axis=0), rtol=1e-6)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_class_with_too_few_samples_gets_fewer_components(covariance: str) -> None:
    train, labels = embeddings()
    keep = torch.cat([(labels == 0).nonzero()[:5, 0], (labels != 0).nonzero()[:, 0]])
    train, labels = train[keep], labels[keep]
    detector = build_detector("gmm", components=4, covariance=covariance).fit(train, labels)
    densities = [reference(train[labels == k], 4 if k else 2, covariance, train) for k in range(3)]
    np.testing.assert_allclose(detector.score(train).numpy(), -np.max(densities, axis=0), rtol=1e-6)


def test_knows_the_clusters_of_a_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(200, dtype=torch.int64)
    train = torch.randn(200, 3, generator=generator) + 20 * (torch.arange(200) % 2)[:, None]
    between = torch.full((1, 3), 10.0)
    one, two = (build_detector("gmm", components=c).fit(train, labels) for c in (1, 2))
    assert one.score(between) < one.score(train).min()
    assert two.score(between) > two.score(train).max()
