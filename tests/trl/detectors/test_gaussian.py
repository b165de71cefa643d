import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from torch import Tensor

from trl.common.errors import TrlError
from trl.detectors import DETECTORS, build_detector
from trl.detectors.base import BATCH
from trl.detectors.gaussian import FLOOR, GaussianDetector

COVARIANCES = ["full", "tied", "diagonal"]


def embeddings(n: int = 300, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three correlated, differently scaled classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    mixing = torch.randn(3, d, d, generator=generator)
    centres = 3 * torch.randn(3, d, generator=generator)
    noise = torch.randn(n, 1, d, generator=generator)
    return (noise @ mixing[labels]).squeeze(1) + centres[labels], labels


def reference(train: Tensor, labels: Tensor, covariance: str, shrinkage: float | None, test: Tensor) -> np.ndarray:
    """The score by its definition, with scikit-learn's covariances and SciPy's density."""
    rows = [train[labels == k].double().numpy() for k in labels.unique()]
    centred = [row - row.mean(0) for row in rows]
    if covariance == "tied":
        centred = [np.concatenate(centred)] * len(rows)
    densities = []
    for row, deviations in zip(rows, centred, strict=True):
        estimator = LedoitWolf if shrinkage is None else lambda **k: ShrunkCovariance(shrinkage=shrinkage, **k)
        sigma = estimator(assume_centered=True).fit(deviations).covariance_
        sigma = sigma + FLOOR * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
        if covariance == "diagonal":
            sigma = np.diag(np.diag(sigma))
        densities.append(multivariate_normal(row.mean(0), sigma).logpdf(test.double().numpy()))
    return -np.max(densities, axis=0)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3, 1.0])
def test_score_is_the_largest_log_density(covariance: str, shrinkage: float | None) -> None:
    train, labels = embeddings()
    test = 4 * torch.randn(BATCH + 3, 4, generator=torch.Generator().manual_seed(1))
    detector = build_detector("gaussian", covariance=covariance, shrinkage=shrinkage).fit(train, labels)
    scores = detector.score(test)
    assert scores.shape == (BATCH + 3,)
    np.testing.assert_allclose(scores.numpy(), reference(train, labels, covariance, shrinkage, test), rtol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_far_is_more_adversarial_than_near(covariance: str) -> None:
    train, labels = embeddings()
    detector = build_detector("gaussian", covariance=covariance).fit(train, labels)
    assert detector.score(train + 100).min() > detector.score(train).max()


def test_full_covariance_knows_correlation_and_diagonal_does_not() -> None:
    line = torch.linspace(-1, 1, 50)[:, None] * torch.ones(1, 2)
    train = line + 0.01 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(50, dtype=torch.int64)
    on, off = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, -0.5]])
    gaps = {}
    for covariance in COVARIANCES:
        detector = build_detector("gaussian", covariance=covariance, shrinkage=0.0).fit(train, labels)
        gaps[covariance] = float(detector.score(off) - detector.score(on))
    assert gaps["full"] == gaps["tied"] > 100
    assert abs(gaps["diagonal"]) < 0.1


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 100),
    covariance=st.sampled_from(COVARIANCES),
    shrinkage=st.sampled_from([None, 0.0]),
    per_class=st.integers(2, 6),
)
def test_singular_covariances(seed: int, covariance: str, shrinkage: float | None, per_class: int) -> None:
    """Dead units, and fewer samples in a class than dimensions."""
    train, labels = embeddings(3 * per_class, 10, seed)
    train[:, :4] = 0
    train[:, 4] = 2.5
    detector = build_detector("gaussian", covariance=covariance, shrinkage=shrinkage).fit(train, labels)
    natural = detector.score(train)
    assert natural.isfinite().all()
    woken = train.clone()
    woken[:, 0] = 1
    assert (detector.score(woken) > natural).all()


def test_tied_takes_a_class_of_one_sample() -> None:
    train, labels = embeddings(31)
    labels[-1] = 7
    for covariance in ("full", "diagonal"):
        with pytest.raises(TrlError, match="class 7 has one sample"):
            build_detector("gaussian", covariance=covariance).fit(train, labels)
    detector = build_detector("gaussian", covariance="tied").fit(train, labels)
    # a lone sample is its class's mean: nothing is more likely
    assert detector.score(train[-1:]) == detector.score(train).min()


def test_scores_can_be_attacked() -> None:
    train, labels = embeddings()
    detector = build_detector("gaussian").fit(train, labels)
    start = train[:5] + 3
    h = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.score(h).sum(), h)
    step = 1e-3 * gradient / gradient.norm(dim=1, keepdim=True)
    assert (detector.score(start - step) < detector.score(start)).all()


def test_labels_may_be_any_numbers_in_any_order() -> None:
    train, labels = embeddings()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    detector = build_detector("gaussian").fit(train, labels)
    other = build_detector("gaussian").fit(train[order], (9 - 4 * labels[order]).to(torch.int32))
    torch.testing.assert_close(detector.score(train), other.score(train))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.full((4, 2), torch.nan), [0, 0, 1, 1], "NaN"),
        (torch.ones(4, 2), [0, 0, 1, 1], "all equal"),
        (torch.randn(4, 2), [0, 0, 1], "one label each"),
        (torch.randn(0, 2), [], "one label each"),
        (torch.randn(4), [0, 0, 1, 1], r"floats \[n,d\]"),
        (torch.ones(4, 2, dtype=torch.int64), [0, 0, 1, 1], r"floats \[n,d\]"),
    ],
)
def test_embeddings_that_cannot_be_fitted(features: Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(TrlError, match=message):
        build_detector("gaussian").fit(features, torch.tensor(labels))


def test_embeddings_that_cannot_be_scored() -> None:
    detector = build_detector("gaussian")
    with pytest.raises(TrlError, match="not fitted"):
        detector.score(torch.randn(2, 4))
    detector.fit(*embeddings())
    with pytest.raises(TrlError, match="5 dimensions, but the detector was fitted to 4"):
        detector.score(torch.randn(2, 5))
    with pytest.raises(TrlError, match="infinite"):
        detector.score(torch.full((2, 4), torch.inf))


def test_options() -> None:
    detector = build_detector("gaussian")
    assert isinstance(detector, GaussianDetector)
    assert (detector.covariance, detector.shrinkage) == ("full", None)
    assert set(DETECTORS.options("gaussian").model_fields) == {"covariance", "shrinkage", "layer"}
    for options, message in (
        ({"covariance": "spherical"}, "covariance"),
        ({"shrinkage": 1.5}, "shrinkage"),
        ({"temperature": 1}, "temperature: unknown key; allowed: covariance, shrinkage, layer"),
    ):
        with pytest.raises(TrlError, match=message):
            build_detector("gaussian", **options)
    with pytest.raises(TrlError, match="unknown detector 'nose'; known: energy, gaussian, "):
        build_detector("nose")
