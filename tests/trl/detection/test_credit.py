"""Signs of a detector that is credited with too much: each where it is, and none on an ordinary detector."""

import pytest
import torch
from torch import Tensor, nn

from trl.detection.credit import check_credit, check_score
from trl.detectors import DETECTORS, Detector, build_detector
from trl.detectors.observe import embed
from trl.models import build_model


def flags(correct: int, n: int) -> Tensor:
    return torch.arange(n) < correct


@pytest.mark.parametrize(
    ("rejecting", "plain", "n", "seen"),
    [
        (940, 870, 1000, True),  # ALP on MNIST under gradient attacks
        (890, 870, 1000, False),  # and under Square
        (9150, 8700, 10000, False),  # intervals apart, but less than 5 points
        (94, 87, 100, False),  # too few images to tell
        (60, 10, 100, True),
        (500, 900, 1000, False),  # rejection that costs natural images
        (1, 0, 1, False),
        (0, 0, 10, False),
    ],
)
def test_credit_far_above_the_plain_worst_case(rejecting: int, plain: int, n: int, seen: bool) -> None:
    signs = check_credit(flags(rejecting, n), flags(plain, n))
    assert [sign.name for sign in signs] == ["credit"] * seen
    for sign in signs:
        assert f"{rejecting / n:.1%} of {n} images" in sign.message
        assert f"without it {plain / n:.1%}: {100 * (rejecting - plain) / n:.1f} points" in sign.message


class Through(Detector):
    """The mean of the logits, changed on the way."""

    reads = "logits"

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def _learn(self, features: Tensor, labels: Tensor) -> None: ...

    def _score(self, features: Tensor) -> Tensor:
        return self.change(features.mean(1))


def network() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("mlp", 3, (1, 4, 4), width=16, depth=2), torch.rand(300, 1, 4, 4), torch.arange(300) % 3


def signs(detector: Detector, images: Tensor) -> list[str]:
    model, x, y = network()
    seen, _ = embed(model, x, 500, detector.reads)
    return [sign.message for sign in check_score(model, detector.fit(seen, y), images)]


@pytest.mark.parametrize("name", DETECTORS.names())
def test_every_detector_has_a_gradient(name: str) -> None:
    _, x, _ = network()
    assert signs(build_detector(name), 0.9 * x) == []  # other images than it learnt from
    assert signs(build_detector(name), (255 * x[:1]).to(torch.uint8)) == []


@pytest.mark.filterwarnings("ignore:the model's logits have no gradient")
@pytest.mark.parametrize(
    "change",
    [
        lambda score: (10 * score).round(),
        lambda score: (score > 0).double(),
        lambda score: score.detach(),
        lambda score: score + (score - score).sqrt(),
    ],
    ids=["rounded", "decided", "detached", "nan"],
)
def test_a_score_without_a_gradient(change) -> None:
    (message,) = signs(Through(change), network()[1])
    assert "zero or not finite for 100% of the images" in message
    assert signs(Through(lambda score: score), network()[1]) == []
