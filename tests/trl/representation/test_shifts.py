import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trl.common.errors import TrlError
from trl.representation import shifts as representation
from trl.representation.shifts import knn_accuracy, shift_ratios, tsne


def distance(u: list[float], v: list[float]) -> float:
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return 1 - abs(dot) / (math.hypot(*u) * math.hypot(*v))


def naive(natural, labels, adversarial, true, predicted) -> tuple[float | None, float | None]:
    """The definition, pair by pair."""
    means = []
    for crafted_from in (False, True):
        ratios = []
        for k in set(labels):
            own = [h for h, y in zip(natural, labels, strict=True) if y == k]
            if crafted_from:
                others = [h for h, t in zip(adversarial, true, strict=True) if t == k]
            else:
                triples = zip(adversarial, true, predicted, strict=True)
                others = [h for h, t, p in triples if p == k and t != k]
            within = [distance(u, v) for i, u in enumerate(own) for j, v in enumerate(own) if i != j]
            between = [distance(u, v) for u in others for v in own]
            if within and between:
                ratios.append(sum(between) / len(between) / (sum(within) / len(within)))
        means.append(sum(ratios) / len(ratios) if ratios else None)
    return means[0], means[1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 25), m=st.integers(1, 20), block=st.sampled_from([1, 7, 10**6]))
def test_shift_ratios_equal_the_naive_loop(seed: int, n: int, m: int, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    natural, adversarial = (torch.randn(k, 3, generator=generator) for k in (n, m))
    labels, true, predicted = (torch.randint(0, 4, (k,), generator=generator) for k in (n, m, m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representation, "BLOCK", block)
        found = shift_ratios(natural, labels, adversarial, true, predicted)
    given_ = (natural, labels, adversarial, true, predicted)
    for ratio, expected in zip(found, naive(*(part.tolist() for part in given_)), strict=True):
        if expected is None:
            assert ratio is None
        else:
            assert ratio == pytest.approx(expected, rel=1e-6)


def test_shift_ratios_by_hand() -> None:
    # class 0 along (1,0) and (1,1), class 1 along (0,1) twice the same and (1,1)
    natural = torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, 2], [1, 1]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    adversarial = torch.tensor([[0.0, -3], [1, 0]])
    true, predicted = torch.tensor([0, 0]), torch.tensor([1, 0])
    d = 1 - math.sqrt(0.5)
    found = shift_ratios(natural, labels, adversarial, true, predicted)
    assert found.r == pytest.approx((d / 3) / (2 * d / 3))  # (0,-3) against class 1: 0, 0, d
    assert found.r_prime == pytest.approx((1 + d + 0 + d) / 4 / d)  # both, against class 0
    # nothing succeeded: no shift to a false class; the sign of an embedding does not matter
    failed = shift_ratios(-natural, labels, adversarial, true, true)
    assert failed.r is None
    assert failed.r_prime == pytest.approx(found.r_prime)


def test_classes_without_spread_are_left_out() -> None:
    ones, y = torch.ones(3, 2), torch.tensor([0, 0, 1])
    assert shift_ratios(ones[:1], y[:1], ones, y, y.flip(0)) == (None, None)  # one natural image
    collinear = torch.arange(1.0, 9)[:, None] * torch.tensor([0.1, 0.3, 0.7])  # but for rounding
    zeros = torch.zeros(8, dtype=torch.int64)
    assert shift_ratios(collinear, zeros, torch.eye(3), y, y.flip(0)) == (None, None)


def test_a_zero_embedding_is_far_from_all_but_no_pair_of_its_own() -> None:
    natural, zeros = torch.tensor([[0.0, 0], [1, 0], [1, 0]]), torch.zeros(3, dtype=torch.int64)
    found = shift_ratios(natural, zeros, torch.tensor([[0.0, 1]]), zeros[:1], zeros[:1])
    assert found.r_prime == pytest.approx(1 / (4 / 6))


def clusters(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three directions with little noise, at lengths that vary a lot."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    rows = torch.eye(3)[labels] + 0.05 * torch.randn(n, 3, generator=generator)
    return rows * (0.1 + 10 * torch.rand(n, 1, generator=generator)), labels


def test_knn_votes_by_direction() -> None:
    (train, train_labels), (test, labels) = clusters(60), clusters(30, seed=1)
    assert knn_accuracy(train, train_labels, test, labels, neighbours=5) == 1
    assert knn_accuracy(train, train_labels, test, (labels + 1) % 3, neighbours=5) == 0
    assert knn_accuracy(train, train_labels, test, torch.zeros_like(labels), 1) == pytest.approx(1 / 3)
    # with all embeddings voting, the largest class wins everywhere
    train_labels[:2] = 2
    assert knn_accuracy(train, train_labels, test, labels, neighbours=60) == pytest.approx(1 / 3)
    with pytest.raises(TrlError, match="61 neighbours of 60"):
        knn_accuracy(train, train_labels, test, labels, neighbours=61)


def test_tsne_keeps_clusters_together_and_is_reproducible() -> None:
    features, labels = clusters(60)
    state = torch.get_rng_state()
    points = tsne(features, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert points.shape == (60, 2)
    assert torch.equal(points, tsne(features, seed=1))
    # only directions count: another length of each row changes nothing
    lengths = 2.0 ** (torch.arange(60) % 5 - 2)[:, None]
    torch.testing.assert_close(points, tsne(features * lengths, seed=1))
    assert knn_accuracy(points - points.mean(0), labels, points - points.mean(0), labels, 5) > 0.9


@pytest.mark.parametrize("features", [torch.ones(40, 5), torch.zeros(40, 5), torch.arange(40.0)[:, None]])
def test_tsne_of_a_collapsed_model(features: Tensor) -> None:
    assert tsne(features).isfinite().all()


def test_too_few_or_broken_embeddings() -> None:
    with pytest.raises(TrlError, match="t-SNE of 30 embeddings"):
        tsne(torch.randn(30, 4))
    with pytest.raises(TrlError, match="NaN"):
        tsne(torch.full((40, 4), torch.nan))
    features, labels = clusters(6)
    with pytest.raises(TrlError, match="with labels"):
        shift_ratios(features, labels, features, labels, labels[1:])
    with pytest.raises(TrlError, match="with labels"):
        knn_accuracy(features[:0], labels[:0], features, labels, 1)
