import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import naive
from trl.common.errors import TrlError
from trl.metric import (
    angular_distance,
    hardest_negative,
    norm_penalty,
    pairwise_angular_distance,
    random_negative,
    triplet_loss,
)
from trl.metric.library import library_loss
from trl.objectives import OBJECTIVES

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 8)


def embeddings(seed: int, *shapes: tuple[int, int], ties: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [(t.round() if ties else t).requires_grad_() for t in drawn]


def test_angular_distance_takes_the_absolute_cosine() -> None:
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    v = torch.tensor([[2.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert angular_distance(u, v).tolist() == [0, 0, 1, 1]  # opposite vectors are as near as equal ones


@given(seeds, sizes, sizes)
def test_pairwise_distance_is_the_paired_one_of_all_pairs(seed: int, n: int, m: int) -> None:
    u, v = embeddings(seed, (n, 3), (m, 3))
    expected = torch.stack([torch.stack([naive.distance(a, b) for b in v]) for a in u])
    torch.testing.assert_close(pairwise_angular_distance(u, v), expected, rtol=0, atol=1e-12)


@given(seeds, sizes, st.sampled_from([0.0, 0.05, 1.0]), st.lists(st.booleans(), min_size=8, max_size=8), st.booleans())
def test_triplet_loss_equals_the_loop_in_value_and_gradient(
    seed: int, n: int, margin: float, mask: list[bool], ties: bool
) -> None:
    tensors = embeddings(seed, (n, 4), (n, 4), (n, 4))
    if ties:  # positive and negative at exactly the same distance
        tensors[2] = tensors[1].detach().clone().requires_grad_()
    found = torch.tensor(mask[:n])
    fast = triplet_loss(*tensors, found, margin).loss
    slow = naive.triplet_loss(*tensors, found.tolist(), margin)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)
    if not ties or margin > 0:  # at the hinge itself the gradient is a convention
        for ours, theirs in zip(torch.autograd.grad(fast, tensors), torch.autograd.grad(slow, tensors), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_triplet_terms_report_what_is_active() -> None:
    anchor = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    near, far = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    terms = triplet_loss(anchor, near, far, torch.tensor([True, True]), 0.5)
    assert (terms.active, terms.positive_distance, terms.negative_distance) == (0.5, 0.5, 0.5)
    assert terms.loss == pytest.approx(0.75)


def test_without_any_triplet_loss_and_gradient_are_zero() -> None:
    tensors = embeddings(0, (3, 4), (3, 4), (3, 4))
    loss = triplet_loss(*tensors, torch.zeros(3, dtype=torch.bool), 0.1).loss
    assert loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, tensors))


def test_a_zero_embedding_gives_no_nan() -> None:
    tensors = [torch.zeros(2, 3, requires_grad=True) for _ in range(3)]
    found = torch.ones(2, dtype=torch.bool)
    loss = triplet_loss(*tensors, found, 0.1).loss + norm_penalty(*tensors, found, "l2")
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, tensors))


@given(seeds, sizes)
def test_norm_penalty_equals_the_loop(seed: int, n: int) -> None:
    a, p, m = embeddings(seed, (n, 4), (n, 4), (n, 4))
    found = torch.ones(n, dtype=torch.bool)
    l2 = sum(e[i].square().sum().sqrt() for e in (a, p, m) for i in range(n)) / n
    mean = sum(e[i].square().sum() / 4 for e in (a, p, m) for i in range(n)) / n
    torch.testing.assert_close(norm_penalty(a, p, m, found, "l2"), l2, rtol=0, atol=1e-6)
    torch.testing.assert_close(norm_penalty(a, p, m, found, "squared_mean"), mean, rtol=0, atol=1e-6)


@given(seeds, sizes, sizes, st.booleans(), st.integers(1, 4))
def test_hardest_negative_equals_the_loop(seed: int, n: int, m: int, ties: bool, classes: int) -> None:
    (similarity,) = embeddings(seed, (n, m), ties=ties)
    generator = torch.Generator().manual_seed(seed)
    labels, pool = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    index, found = hardest_negative(similarity, labels, pool)
    expected = naive.hardest_negative(similarity, labels.tolist(), pool.tolist())
    assert found.tolist() == [e is not None for e in expected]
    assert [i for i, e in zip(index.tolist(), expected, strict=True) if e is not None] == [
        e for e in expected if e is not None
    ]
    assert ((index >= 0) & (index < m)).all()  # also where nothing was found, so that indexing is safe


def test_mining_uses_the_signed_cosine() -> None:
    index, _ = hardest_negative(torch.tensor([[-1.0, 0.2]]), torch.tensor([0]), torch.tensor([1, 1]))
    assert index.tolist() == [1]


@given(seeds, sizes, sizes)
def test_random_negative_is_always_of_another_class(seed: int, n: int, m: int) -> None:
    torch.manual_seed(seed)
    labels, pool = torch.randint(3, (n,)), torch.randint(3, (m,))
    index, found = random_negative(labels, pool)
    assert found.tolist() == [bool((pool != label).any()) for label in labels]
    assert (pool[index] != labels)[found].all()


def test_random_negative_reaches_every_candidate() -> None:
    labels, pool = torch.zeros(500, dtype=torch.long), torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(0)
    counts = random_negative(labels, pool)[0].bincount(minlength=5)
    assert counts[[0, 3]].sum() == 0
    assert (counts[[1, 2, 4]] > 120).all()


@pytest.mark.parametrize(
    "name", ["TripletMarginLoss", "ContrastiveLoss", "NTXentLoss", "MultiSimilarityLoss", "NormalizedSoftmaxLoss"]
)
def test_a_library_loss_takes_the_triplets_place(name: str) -> None:
    tensors = embeddings(1, (6, 4), (6, 4), (6, 4))
    y, found = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([True] * 5 + [False])
    compute = library_loss(name, {}, 3, 4)
    loss = compute(*tensors, y, (y + 1) % 3, found)
    assert loss > 0
    gradients = torch.autograd.grad(loss, tensors)
    assert gradients[0][:5].abs().sum() > 0
    assert gradients[0][5].abs().sum() == 0  # an anchor without a negative takes no part


def test_the_librarys_triplet_loss_equals_ours_on_its_distance() -> None:
    from pytorch_metric_learning.distances import CosineSimilarity

    a, p, n = (t.abs() for t in embeddings(2, (6, 4), (6, 4), (6, 4)))  # without signs |cos| is cos
    y, found = torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.bool)
    options = {"margin": 0.3, "distance": CosineSimilarity(), "reducer": None}
    theirs = library_loss("TripletMarginLoss", options, 3, 4)(a, p, n, y, y + 1, found)
    terms = triplet_loss(a, p, n, found, 0.3)
    torch.testing.assert_close(theirs * terms.active, terms.loss, rtol=1e-6, atol=1e-9)  # it averages the active ones


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("NoSuchLoss", {}, "unknown metric_loss"),
        ("TripletMarginLoss", {"margn": 1}, "metric_options do not fit"),
        ("ArcFaceLoss", {"num_classes": 3}, "leave num_classes out of metric_options"),
        ("SoftTripleLoss", {"centres": 3}, "metric_options do not fit"),
        ("RankedListLoss", {"margin": 1}, "metric_options do not fit"),
        ("InstanceLoss", {}, "cannot be trained on mined tuples"),
        ("SmoothAPLoss", {}, "cannot be trained on mined tuples"),
        ("P2SGradLoss", {}, "cannot be trained on mined tuples"),
        ("DynamicSoftMarginLoss", {}, "cannot be trained on mined tuples"),  # its second step is an error
        ("MarginLoss", {"learn_beta": True, "num_classes": 2}, "cannot be trained on mined tuples"),
    ],
)
def test_library_loss_refuses(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(TrlError, match=message):
        library_loss(name, options, 3, 4)


def test_what_a_loss_with_weights_needs_of_the_model_is_asked_for() -> None:
    assert library_loss("NTXentLoss", {}, 3, None) is not None
    with pytest.raises(TrlError, match="needs the width of embeddings"):
        library_loss("ProxyAnchorLoss", {}, 3, None)


@pytest.mark.parametrize("name", ["NTXentLoss", "MarginLoss", "ProxyAnchorLoss", "NormalizedSoftmaxLoss"])
def test_a_library_loss_without_any_triplet_is_zero_with_a_gradient_of_zero(name: str) -> None:
    tensors = embeddings(4, (6, 4), (6, 4), (6, 4))
    y, unlabelled = torch.zeros(6, dtype=torch.long), torch.full((6,), -1)  # as of places of a queue that are empty
    compute = library_loss(name, {"learn_beta": True} if name == "MarginLoss" else {}, 2, 4)
    assert bool(list(compute.parameters())) == (name != "NTXentLoss")
    loss = compute(*tensors, y, unlabelled, torch.zeros(6, dtype=torch.bool))
    assert loss == 0
    gradients = torch.autograd.grad(loss, [*tensors, *compute.parameters()])
    assert all((g == 0).all() for g in gradients)


def test_every_loss_is_refused_or_works() -> None:
    from pytorch_metric_learning import losses

    works = []
    for name in (n for n in vars(losses) if n.endswith("Loss") and not n.startswith("Base")):
        try:
            compute = library_loss(name, {}, 3, 16)
        except TrlError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        a, p, n = embeddings(3, (8, 16), (8, 16), (8, 16))
        y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
        loss = compute(a, p, n, y, (y + 1) % 3, torch.ones(8, dtype=torch.bool))
        assert torch.isfinite(loss)
        works.append(name)
    assert {"TripletMarginLoss", "NTXentLoss", "SupConLoss"} <= set(works)
    assert {"ProxyAnchorLoss", "SoftTripleLoss", "SubCenterArcFaceLoss"} <= set(works)  # with weights


@pytest.mark.parametrize("name", ["NoSuchLoss", "P2SGradLoss", "VICRegLoss", "DynamicSoftMarginLoss"])
def test_a_loss_that_cannot_work_is_refused_with_the_parameters(name: str) -> None:
    with pytest.raises(TrlError, match=f"metric_loss: .*{name}") as caught:
        OBJECTIVES.check("tla", {"metric_loss": name})
    assert "\n" not in str(caught.value)


def test_losses_that_work_are_accepted_with_the_parameters() -> None:
    # the last one's options are not known yet
    for name in ("triplet", "NTXentLoss", "ProxyAnchorLoss", "CosFaceLoss", "RankedListLoss"):
        assert OBJECTIVES.check("tla", {"metric_loss": name})["metric_loss"] == name
