import numpy as np
import pytest
import torch

from tests.helpers.natural_embeddings import embeddings
from trl.common.errors import TrlError
from trl.detectors import build_detector, neighbours


@pytest.mark.parametrize("k", [2, 5, 90, 500])
@pytest.mark.parametrize("pairs", [1, 2**24])
def test_score_is_equation_4(k: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PAIRS", pairs)
    train, labels = embeddings()
    expected = []
    for h in (train - 1).double().numpy():
        r = np.sort(np.linalg.norm(train.double().numpy() - h, axis=1))[:k]
        expected.append(-1 / np.mean(np.log(r / r[-1])))
    detector = build_detector("lid", neighbours=k).fit(train, labels)
    np.testing.assert_allclose(detector.score(train - 1).numpy(), expected, rtol=1e-6)


def test_finds_the_dimension_of_a_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(4000, 3, generator=generator) @ torch.randn(3, 10, generator=generator)
    inside = train.mean(0) + 0.5 * (train[:200] - train.mean(0)) + 1e-4
    scores = build_detector("lid", neighbours=50).fit(train, torch.zeros(4000)).score(inside)
    assert float(scores.mean()) == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize("copies", [1, 2, 20])
def test_natural_images_themselves_and_their_duplicates(copies: int) -> None:
    train, labels = embeddings()
    detector = build_detector("lid", neighbours=10).fit(train.repeat(copies, 1), labels.repeat(copies))
    h = train.clone().requires_grad_()
    scores = detector.score(h)
    assert (scores > 0).all()
    assert (scores < detector.score(train - 100).min()).all()
    (gradient,) = torch.autograd.grad(scores.sum(), h)
    assert gradient.isfinite().all()


def test_equally_near_neighbours() -> None:
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    detector = build_detector("lid", neighbours=8).fit(corners, torch.zeros(8))
    h = torch.zeros(1, 4, requires_grad=True)
    score = detector.score(h)
    assert 1e6 < float(score.detach()) < 1e12
    (gradient,) = torch.autograd.grad(score.sum(), h)
    assert gradient.isfinite().all()


def test_one_natural_embedding_is_not_enough() -> None:
    with pytest.raises(TrlError, match="give at least two"):
        build_detector("lid").fit(torch.randn(1, 4), torch.zeros(1))
