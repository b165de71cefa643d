import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.helpers import naive
from tests.helpers.tiny_training import ATTACK, EMBEDDING, THREAT, THREATS, images, model, setting
from trl.attacks import build_attack
from trl.common.errors import TrlError
from trl.common.seeds import derive_seed
from trl.data import ShuffledStream, TrainingData
from trl.objectives import OBJECTIVES, build_objective
from trl.objectives.base import Batch, Setting, forward_groups
from trl.regions import Background, Border


def batch(used: Setting, step: int = 0) -> Batch:
    indices = torch.arange(step * 8, step * 8 + 8)
    return Batch(*used.data.take(indices), indices, step, ATTACK)


class DoubleData(TrainingData):
    """In float64, so that 1e-6 is far above rounding."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().take(indices)
        return x.double(), y


def naive_tla(net: Any, used: Setting, b: Batch, options: dict[str, Any]) -> Tensor:
    """TLA's loss as the paper writes it, sample by sample; draws in the same order as the objective."""
    o = {"lambda1": 0.5, "margin": 0.05, "lambda2": 0.001, "pool": 50, "positive": "other", "norm": "l2"} | options
    x_adv = b.attack(net, b.x, b.y)
    stream = ShuffledStream(len(used.data.labels), o["pool"], derive_seed(used.seed, "pool"))
    x_pool, y_pool = used.data.take(stream.indices(b.step))
    if o.get("negative") == "random":
        lottery = torch.rand(len(b.y), len(y_pool))
    else:
        was, _ = net.training, net.eval()
        with torch.no_grad():
            q, p = net.features(x_adv), net.features(x_pool)
        net.train(was)
        lottery = torch.tensor([[float(u @ v / (u.norm() * v.norm())) for v in p] for u in q])
    chosen = naive.hardest_negative(lottery, b.y.tolist(), y_pool.tolist())
    found = [c is not None for c in chosen]
    x_negative = x_pool[[c or 0 for c in chosen]]
    positives = []
    if o["positive"] in ("own", "both"):
        positives.append((b.x + torch.empty_like(b.x).uniform_(-0.1, 0.1)).clamp(0, 1))
    if o["positive"] in ("other", "both"):
        positives.append(used.data.take(used.data.same_class(b.indices))[0])
    adversarial, negative = net.features(x_adv), net.features(x_negative)
    loss = cross_entropy(net.head(adversarial), b.y)
    if o.get("base") == "trades":
        p, q = net(b.x).softmax(1), net(x_adv).softmax(1)
        loss = cross_entropy(net(b.x), b.y) + o["beta"] * (p * (p / q).log()).sum() / len(b.y)
    for x_positive in positives:
        clean = net.features(x_positive)
        anchor, positive = (clean, adversarial) if o.get("switch_anchor") else (adversarial, clean)
        loss = loss + o["lambda1"] * naive.triplet_loss(anchor, positive, negative, found, o["margin"])
        rows = [i for i, f in enumerate(found) if f]
        if o["norm"] == "l2":
            norm = sum((e[i].norm() for e in (anchor, positive, negative) for i in rows), torch.zeros(()))
            loss = loss + o["lambda2"] * norm / max(1, len(rows))
        else:
            square = sum((e[i].square().mean() for e in (anchor, positive, negative) for i in rows), torch.zeros(()))
            loss = loss + o["lambda1"] * o["lambda2"] * square / max(1, len(rows))
    return loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positive": "own"},
        {"positive": "both", "margin": 0.5},
        {"negative": "random", "margin": 1.0},
        {"switch_anchor": True, "margin": 1.0},
        {"norm": "squared_mean", "lambda2": 0.3},
        {"lambda1": 0.0},
        {"margin": 0.0},
        {"pool": 2, "margin": 1.0},
        {"base": "trades", "beta": 3.0, "margin": 0.5},
        {"base": "trades", "beta": 0.5, "positive": "both", "switch_anchor": True},
    ],
    ids=str,
)
def test_tla_equals_the_papers_formula_sample_by_sample(options: dict[str, Any]) -> None:
    net = model().double()
    used = Setting(DoubleData(images(48), "cpu"), THREAT)
    options = {"pool": 12} | options
    for step in range(3):
        b = batch(used, step)
        torch.manual_seed(step)
        ours = build_objective("tla", used, **options)(net, b)["loss"]
        torch.manual_seed(step)
        theirs = naive_tla(net, used, b, options)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        parameters = list(net.parameters())
        ours_g, theirs_g = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs))
        for a, c in zip(ours_g, theirs_g, strict=True):
            torch.testing.assert_close(a, c, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"negative": "queue"}], ids=str)
def test_without_a_triplet_tla_on_trades_is_trades(options: dict[str, Any]) -> None:
    used, net = setting(), model()
    tla: Any = build_objective("tla", used, pool=12, lambda1=0, lambda2=0, base="trades", beta=2.0, **options)
    trades: Any = build_objective("trades", used, beta=2.0)
    assert tla.attack_options == trades.attack_options
    b = dataclasses.replace(batch(used), attack=build_attack("pgd", THREAT, steps=2, **trades.attack_options))
    terms = []
    for objective in (tla, trades):
        torch.manual_seed(1)
        terms.append(objective(net, b))
    for name, value in terms[1].items():
        torch.testing.assert_close(terms[0][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"positive": "both"}, {"switch_anchor": True}], ids=str)
def test_the_queues_negative_is_the_nearest_of_the_last_positives(options: dict[str, Any]) -> None:
    net, size = model().double(), 20
    used = Setting(DoubleData(images(48), "cpu"), THREAT, embedding=EMBEDDING)
    o = {"positive": "other", "switch_anchor": False} | options
    objective = build_objective("tla", used, pool=size, negative="queue", margin=0.5, **options).double()
    queue: list[tuple[Tensor, int]] = []
    for step in range(4):
        b = batch(used, step)
        torch.manual_seed(step)
        ours = objective(net, b)["loss"]
        torch.manual_seed(step)
        adversarial, positives = net.features(b.attack(net, b.x, b.y)), []
        if o["positive"] == "both":
            positives.append((b.x + torch.empty_like(b.x).uniform_(-0.1, 0.1)).clamp(0, 1))
        positives.append(used.data.take(used.data.same_class(b.indices))[0])
        loss = cross_entropy(net.head(adversarial), b.y)
        clean = [net.features(x) for x in positives]
        queue = [*queue, *((e, int(y)) for group in clean for e, y in zip(group.detach(), b.y, strict=True))][-size:]
        cosines = torch.tensor([[float(u @ v / (u.norm() * v.norm())) for v, _ in queue] for u in adversarial])
        chosen = naive.hardest_negative(cosines, b.y.tolist(), [y for _, y in queue])
        negative = torch.stack([queue[c][0] for c in chosen])
        for group in clean:
            anchor, positive = (group, adversarial) if o["switch_anchor"] else (adversarial, group)
            found = [True] * len(b.y)
            loss = loss + 0.5 * naive.triplet_loss(anchor, positive, negative, found, 0.5)
            norm = sum((e[i].norm() for e in (anchor, positive, negative) for i in range(8)), torch.zeros(()))
            loss = loss + 0.001 * norm / 8
        torch.testing.assert_close(ours, loss, rtol=0, atol=1e-6)
        parameters = list(net.parameters())
        for a, c in zip(*(torch.autograd.grad(v, parameters) for v in (ours, loss)), strict=True):
            torch.testing.assert_close(a, c, rtol=0, atol=1e-6)
        assert (objective.queue_labels >= 0).sum() == min(size, (step + 1) * 8 * len(positives))


def run(name: str, used: Setting, net: Any, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_objective(name, used, **options)(net, batch(used))


NEEDED: dict[str, dict[str, Any]] = {"tla": {"pool": 12}, "minmax": {"threats": THREATS}}


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective_returns_finite_scalars_and_trains_every_weight(name: str) -> None:
    used, net = setting(), model()
    terms = run(name, used, net, **NEEDED.get(name, {}))
    assert {"loss", "ce", "accuracy"} <= terms.keys()
    assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_at_minimises_the_cross_entropy_of_the_attacked_images() -> None:
    used, net = setting(label_smoothing=0.1), model()
    torch.manual_seed(1)
    b = batch(used)
    expected = cross_entropy(net(b.attack(net, b.x, b.y)), b.y, label_smoothing=0.1)
    assert float(run("at", used, net)["loss"]) == pytest.approx(float(expected), abs=1e-6)
    assert float(run("natural", used, net)["loss"]) == pytest.approx(
        float(cross_entropy(net(b.x), b.y, label_smoothing=0.1)), abs=1e-6
    )


def test_alp_adds_the_squared_distance_of_the_logits() -> None:
    used, net = setting(), model()
    torch.manual_seed(1)
    b = batch(used)
    x_adv = b.attack(net, b.x, b.y)
    pairing = sum(float((net(b.x)[i] - net(x_adv)[i]).square().sum()) for i in range(8)) / 8
    terms = run("alp", used, net, weight=0.5)
    assert float(terms["pairing"]) == pytest.approx(pairing, rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(float(terms["ce"]) + 0.5 * pairing, rel=1e-5)


def test_smoothing_trains_on_noise_that_is_not_clipped() -> None:
    used, net = setting(label_smoothing=0.1), model()
    b = batch(used)
    torch.manual_seed(1)
    noisy = b.x + 0.5 * torch.randn(b.x.shape)
    assert noisy.min() < 0
    terms = run("smoothing", used, net, sigma=0.5)
    torch.testing.assert_close(terms["loss"], cross_entropy(net(noisy), b.y, label_smoothing=0.1))
    assert terms["accuracy"] == (net(noisy).argmax(1) == b.y).float().mean()


def test_stability_training_adds_the_divergence_from_clean_to_noisy() -> None:
    used, net = setting(), model()
    b = batch(used)
    torch.manual_seed(1)
    noisy = b.x + 0.5 * torch.randn(b.x.shape)
    p, q = (net(images).detach().softmax(1) for images in (b.x, noisy))
    divergence = sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for i in range(8) for c in range(3)) / 8
    terms = run("smoothing", used, net, sigma=0.5, stability=6)
    assert float(terms["stability"]) == pytest.approx(divergence, rel=1e-4)
    assert float(terms["ce"]) == pytest.approx(float(cross_entropy(net(b.x), b.y)), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(float(terms["ce"]) + 6 * divergence, rel=1e-4)


def test_lambda1_zero_is_at_plus_the_norm_term_and_at_is_its_limit() -> None:
    used, net = setting(), model()
    control = run("tla", used, net, pool=12, lambda1=0.0, lambda2=0.0)
    assert float(control["loss"]) == pytest.approx(float(run("at", used, net)["loss"]), abs=1e-6)


def test_a_pool_without_negatives_leaves_adversarial_training() -> None:
    used, net = setting(), model()
    used.data.labels[:] = 1  # every image of one class
    b = batch(used)
    torch.manual_seed(1)
    terms = build_objective("tla", used, pool=12)(net, Batch(b.x, b.y, b.indices, 0, ATTACK))
    assert terms["triplet"] == 0
    assert terms["loss"] == terms["ce"]
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_library_loss_replaces_the_triplet() -> None:
    used, net = setting(), model()
    terms = run("tla", used, net, pool=12, metric_loss="NTXentLoss", metric_options={"temperature": 0.5})
    assert terms["triplet"] > 0
    assert float(terms["loss"]) == pytest.approx(
        float(terms["ce"] + 0.5 * terms["triplet"] + 0.001 * terms["norm"]), rel=1e-5
    )


def test_adversarial_images_are_constants_and_mining_leaves_batch_norm_alone() -> None:
    used = setting()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 8), torch.nn.ReLU())
    net.features, net.head = net.forward, torch.nn.Linear(8, 3)  # type: ignore[assignment]
    objective: Any = build_objective("tla", used, pool=12)
    net.train()
    before = net[1].running_mean.clone()  # type: ignore[union-attr, operator]
    b = batch(used)
    objective._negatives(net, b.x, b)
    assert torch.equal(net[1].running_mean, before)  # type: ignore[arg-type]
    assert net.training
    assert net[1].training


@pytest.mark.parametrize("negative", ["hard", "queue"])
def test_mining_is_in_full_precision(negative: str) -> None:
    """An untrained ResNet's embeddings differ by less than bf16 resolves: it would take another negative for most."""
    torch.manual_seed(0)
    net = model(name="resnet18").eval()
    used = dataclasses.replace(setting(), embedding=64)

    def chosen(half: bool) -> Tensor:
        objective: Any = build_objective("tla", used, pool=40, negative=negative)
        b = batch(used)
        anchors, positives = torch.randn(8, 64), [torch.randn(8, 64) * 1e-3 + 1 for _ in range(5)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            if negative == "hard":
                return objective._negatives(net, b.x, b)[0]
            return objective._from_queue(anchors, positives, b.y)[0]

    torch.manual_seed(1)
    full = chosen(half=False)
    torch.manual_seed(1)
    assert torch.equal(chosen(half=True), full)


def test_groups_share_a_pass_only_without_batch_norm() -> None:
    passes: list[int] = []

    def counting(net: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            passes.append(len(x))
            return net(x)

        return function

    plain, normed = torch.nn.Linear(4, 2), torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    groups = [torch.rand(3, 4), torch.rand(5, 4)]
    for net, expected in ((plain, [8]), (normed, [3, 5])):
        passes.clear()
        results = forward_groups(net, counting(net), groups)
        assert passes == expected
        assert [len(r) for r in results] == [3, 5]
    torch.testing.assert_close(forward_groups(plain, plain, groups)[1], plain(groups[1]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "unknown objective"),
        ("tla", {"pool": 1}, "pool: should be greater than or equal to 2"),
        ("tla", {"pool": 49}, "pool is 49, more than the 48 training images"),
        ("tla", {"margin": -1}, "margin: should be greater than or equal to 0"),
        ("tla", {"positive": "any"}, "positive: should be 'other', 'own' or 'both'"),
        ("at", {"weight": 1}, "weight: unknown key"),
        ("smoothing", {"sigma": 0}, "sigma: should be greater than 0"),
        ("smoothing", {"stability": -1}, "stability: should be greater than 0"),
    ],
)
def test_bad_options_are_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        build_objective(name, setting(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_localized_weighs_clean_and_localized_images(rho: float) -> None:
    used, net = setting(label_smoothing=0.1), model()
    objective: Any = build_objective("localized", used, rho=rho, region={"name": "background", "threshold": 0.3})
    assert objective.threat == THREAT.within(Background(threshold=0.3))
    torch.manual_seed(1)
    b = dataclasses.replace(batch(used), attack=build_attack("pgd", objective.threat, steps=2))
    x_adv = b.attack(net, b.x, b.y)
    assert torch.equal(x_adv[b.x >= 0.3], b.x[b.x >= 0.3])
    assert not torch.equal(x_adv, b.x)
    clean, localized = (cross_entropy(net(x), b.y, label_smoothing=0.1) for x in (b.x, x_adv))
    torch.manual_seed(1)
    terms = objective(net, dataclasses.replace(batch(used), attack=b.attack))
    torch.testing.assert_close(terms["loss"], (1 - rho) * clean + rho * localized)


def test_localized_has_a_region_of_its_own() -> None:
    used = dataclasses.replace(setting(), threat=THREAT.within(Border()))
    assert build_objective("at", used).threat == used.threat
    assert build_objective("localized", used).threat == THREAT.within(Background())
    with pytest.raises(TrlError, match="objective localized: region: unknown region 'sky'; known: background"):
        build_objective("localized", used, region={"name": "sky"})
    with pytest.raises(TrlError, match=r"objective localized: region\.?\w*: .*threshold"):
        build_objective("localized", used, region={"name": "background", "level": 1})
