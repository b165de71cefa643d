import pytest
import torch
from torch import Tensor

from trl.attacks import Both, Misclassified, Targeted, Undetected, apgd, fgsm, pgd
from trl.attacks.base import ascent
from trl.attacks.criterion import Orthogonal, Scored
from trl.attacks.losses import cross_entropy, dlr
from trl.detectors import Detector, build_detector
from trl.detectors.observe import observe
from trl.models import Classifier, build_model
from trl.threat import L2, Linf


class Distance(Detector):
    """How far an embedding is from the origin."""

    def _learn(self, features: Tensor, labels: Tensor) -> None:
        pass

    def _score(self, features: Tensor) -> Tensor:
        return features.norm(dim=1)


def setting(n: int = 40) -> tuple[Classifier, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build_model("mlp", 3, (1, 4, 4), width=16, depth=1).eval()
    with torch.no_grad():
        model.head.weight.mul_(5)
    x = torch.rand(n, 1, 4, 4)
    return model, x, model(x).argmax(1)


def test_targeted_attacks_reach_the_target() -> None:
    model, x, y = setting()
    target = (y + 1) % 3
    for attack in (lambda c, y: pgd(model, x, y, Linf(0.5), c, restarts=2), lambda c, y: fgsm(model, x, y, L2(0.5), c)):
        reached = (model(attack(Targeted(), target)).argmax(1) == target).float().mean()
        untargeted = (model(attack(Misclassified(), y)).argmax(1) == target).float().mean()
        assert reached > untargeted
    assert (model(pgd(model, x, target, Linf(1.0), Targeted(), restarts=2)).argmax(1) == target).all()


@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_a_target_is_kept_once_reached(loss: str) -> None:
    model, x, y = setting()
    x_adv = pgd(model, x, (y + 2) % 3, Linf(1.0), Targeted(), loss=loss, restarts=3, steps=10)
    assert (model(x_adv).argmax(1) == (y + 2) % 3).all()


def scored() -> tuple[Classifier, Tensor, Tensor, Detector, float]:
    model, x, y = setting(200)
    with torch.no_grad():
        _, h = observe(model, x, "features")
    detector = Distance().fit(h, y)
    return model, x, y, detector, float(detector.score(h).quantile(0.5))


def test_both_is_both() -> None:
    model, x, y, detector, threshold = scored()
    criterion = Misclassified() & Undetected(detector, threshold, 0.1)
    outputs = criterion.view(model)(x)
    assert outputs.shape == (200, 4)
    torch.testing.assert_close(outputs[:, :3].float(), model(x))
    torch.testing.assert_close(outputs[:, 3], detector.score(model.features(x)))
    noise = torch.randn_like(outputs) * 3
    wrong = (outputs + noise)[:, :3].argmax(1) != y
    low = (outputs + noise)[:, 3] <= threshold
    assert 0 < (wrong & low).sum() < wrong.sum() < 200
    assert torch.equal(criterion.met(outputs + noise, y), wrong & low)
    slack = criterion.loss(cross_entropy)(outputs + noise, y)
    assert torch.equal(slack > 0, wrong & low)


def test_three_parts_keep_their_columns() -> None:
    model, x, y, detector, _ = scored()
    always, never = Undetected(detector, 1e9), Undetected(detector, -1e9)
    for parts, expected in (((always, never), False), ((never, always), False), ((always, always), True)):
        for criterion in ((Targeted() & parts[0]) & parts[1], Targeted() & (parts[0] & parts[1])):
            outputs = criterion.view(model)(x)
            assert outputs.shape == (200, 5)
            assert criterion.met(outputs, y).all() == expected


def test_an_attack_on_both_fools_both_where_one_on_the_class_does_not() -> None:
    model, x, y, detector, threshold = scored()
    both = Misclassified() & Undetected(detector, threshold, 0.1)

    def successes(x_adv: Tensor) -> int:
        with torch.no_grad():
            return int(both.met(both.view(model)(x_adv), y).sum())

    plain = successes(pgd(model, x, y, Linf(0.3), steps=40))
    assert successes(pgd(model, x, y, Linf(0.3), both, steps=40)) > plain + 20


def test_layers_and_logits() -> None:
    model, x, _ = setting()
    logits, seen = observe(model, x, "logits")
    assert seen is logits
    torch.manual_seed(0)
    cnn = build_model("strided_cnn", 10, (1, 8, 8)).eval()
    images = torch.rand(5, 1, 8, 8)
    logits, seen = observe(cnn, images, "layers")
    torch.testing.assert_close(logits, cnn(images))
    assert seen.shape == (5, 16 + 32 + 100)
    torch.testing.assert_close(seen[:, -100:], cnn.features(images))
    torch.testing.assert_close(seen[:, :16], cnn.body[:2](images).mean((2, 3)))
    assert not cnn.head._forward_pre_hooks


def test_a_scored_model_is_no_part_of_the_model() -> None:
    model, _, _ = setting()
    keys = list(model.state_dict())
    Scored(model, (build_detector("gaussian"),))
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("strategy", ["selective", "orthogonal"])
def test_one_goal_after_the_other(strategy: str) -> None:
    """The loss ranks all misclassified samples above all others, and those by their scores alone."""
    model, x, y, detector, threshold = scored()
    both = Both(Misclassified(), Undetected(detector, threshold, 0.1), strategy)
    outputs = both.view(model)(x)
    outputs = outputs + 3 * torch.randn_like(outputs)
    loss, wrong = both.loss(cross_entropy)(outputs, y), outputs[:, :3].argmax(1) != y
    assert 0 < wrong.sum() < len(y)
    assert loss[wrong].min() > loss[~wrong].max()
    torch.testing.assert_close(loss[wrong], (threshold - outputs[wrong, 3]) / 0.1)
    order = dlr(outputs[~wrong, :3], y[~wrong]).argsort()
    assert (loss[~wrong][order].diff() >= 0).all()


def test_orthogonal_steps_leave_the_other_loss_as_it_is() -> None:
    model, x, y, detector, threshold = scored()
    y = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 3)  # half of the samples are misclassified already
    both = Both(Misclassified(), Undetected(detector, threshold, 0.1), "orthogonal")
    view, loss = both.view(model), both.loss(cross_entropy)
    assert isinstance(loss, Orthogonal)
    direction = ascent(view, x, y, loss, 3).gradient.flatten(1)

    copy = x.clone().requires_grad_()
    outputs = view(copy)
    gradients = [
        torch.autograd.grad(part(outputs, y).sum(), copy, retain_graph=True)[0].flatten(1)
        for part in (loss.first, loss.second)
    ]
    met = loss.first_met(outputs, y)
    assert 0.3 < met.float().mean() < 0.7
    for where, followed, other in ((~met, *gradients), (met, *reversed(gradients))):
        rows = where & (followed.norm(dim=1) > 0) & (other.norm(dim=1) > 0)
        cosine = torch.nn.functional.cosine_similarity(direction[rows], other[rows])
        assert cosine.abs().max() < 1e-4
        assert ((direction[rows] * followed[rows]).sum(1) > 0).all()  # what is left rises all the same
    # where there is no other gradient, nothing is taken away
    zero = torch.zeros(2, 3)
    ones = torch.ones(2, 3)
    assert torch.equal(
        Orthogonal.direction(ones, zero, torch.tensor([False, True])), torch.tensor([[1.0] * 3, [0.0] * 3])
    )


@pytest.mark.parametrize("strategy", ["joint", "selective", "orthogonal"])
def test_every_strategy_fools_both(strategy: str) -> None:
    model, x, y, detector, threshold = scored()
    both = Both(Misclassified(), Undetected(detector, threshold, 0.1), strategy)

    def successes(x_adv: Tensor) -> int:
        with torch.no_grad():
            return int(both.met(both.view(model)(x_adv), y).sum())

    plain = successes(pgd(model, x, y, Linf(0.3), steps=40))
    for x_adv in (apgd(model, x, y, Linf(0.3), both, steps=30), pgd(model, x, y, Linf(0.3), both, steps=40)):
        assert (x_adv - x).abs().max() <= 0.3 + 1e-6
        assert successes(x_adv) > plain


def test_a_criterion_says_what_it_is() -> None:
    """An evaluation that goes on must not take another detector, threshold or strategy for the same."""
    _, _, _, detector, threshold = scored()
    other = Distance().fit(torch.rand(5, 3), torch.zeros(5, dtype=torch.int64))
    made = [
        Misclassified() & Undetected(detector, threshold),
        Misclassified() & Undetected(detector, threshold + 1e-9),
        Misclassified() & Undetected(other, threshold),
        Targeted() & Undetected(detector, threshold),
        Both(Misclassified(), Undetected(detector, threshold), "selective"),
    ]
    assert len({repr(criterion) for criterion in made}) == 5
    assert repr(made[0]) == repr(Misclassified() & Undetected(detector, threshold))
    assert " at 0x" not in repr(made[0])


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("energy", {}, {"temperature": 2.0}), ("knn", {}, {"layer": "body"}), ("knn", {}, {"neighbours": 2})],
)
def test_options_that_nothing_learnt_shows_belong_to_it(name: str, one: dict, other: dict) -> None:
    h, y = torch.rand(5, 3), torch.zeros(5)
    first, second = (Undetected(build_detector(name, **options).fit(h, y), 1.0) for options in (one, other))
    assert repr(first) != repr(second)
