from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.detection.guard import Guard
from trl.detectors import Calibration, build_detector, calibrate, save_detector
from trl.models import build_model, save_model, weights_sha256

SHAPE = (1, 8, 8)


def images(n: int = 60, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def guard(batch_size: int = 500, network: str = "mlp") -> Guard:
    """A random network, and a detector fitted to what it makes of random images."""
    torch.manual_seed(0)
    model = build_model(network, 3, SHAPE, **({"width": 8} if network == "mlp" else {})).eval()
    if network != "mlp":
        for _ in range(20):  # statistics of batch norm that are not its first ones
            model.train()(images())
        model.eval()
    with torch.no_grad():
        features = model.features(images())
    detector = build_detector("gaussian", covariance="tied").fit(features, torch.arange(60) % 3)
    return Guard(model, detector, calibrate(detector.score(features), 0.1), batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("network", ["mlp", "preact_resnet18"])
def test_judges_as_model_and_detector_do(batch_size: int, network: str) -> None:
    made = guard(batch_size, network)
    x = images(9, seed=1)
    with torch.no_grad():
        logits = made.model(x)
        scores = made.detector.score(made.model.features(x))
    made.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        judgement = made.judge(x)
    assert made.model.training
    assert torch.equal(judgement.classes, logits.argmax(1))
    torch.testing.assert_close(judgement.probabilities, logits.double().softmax(1).amax(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(judgement.scores, scores, rtol=1e-4, atol=1e-4)
    assert judgement.adversarial.tolist() == [score > made.calibration.threshold for score in judgement.scores]
    assert [part.dtype for part in judgement] == [torch.int64, torch.float64, torch.float64, torch.bool]


def test_adversarial_is_what_lies_above_the_threshold() -> None:
    made = guard()
    made.calibration = Calibration(0.1, float(made.judge(images(9)).scores.median()), 1.0)
    judgement = made.judge(images(9))
    assert judgement.adversarial.sum() == 4  # the median itself is not above


def test_bytes_are_judged_like_the_floats_they_stand_for() -> None:
    made, x = guard(), (images() * 255).to(torch.uint8)
    for of_bytes, of_floats in zip(made.judge(x), made.judge(x / 255), strict=True):
        assert torch.equal(of_bytes, of_floats)


def with_value(value: float) -> Tensor:
    x = images(3)
    x[1, 0, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(0), r"images are \[0, 1, 8, 8\]: give .* at least one image"),
        (images()[0], r"images are \[1, 8, 8\]: give \[n, channels, height, width\]"),
        (torch.rand(2, 1, 7, 8), r"takes float images \[n, 1, 8, 8\] in \[0, 1\], not float32 \[2, 1, 7, 8\]"),
        (torch.rand(2, 3, 8, 8), r"takes float images \[n, 1, 8, 8\]"),
        (torch.ones(2, 1, 8, 8, dtype=torch.int64), "images are torch.int64: give uint8, or floats"),
        (with_value(1.1), r"pixels lie in \[.*, 1.1\]"),
        (with_value(-0.1), r"pixels lie in \[-0.1, "),
        (with_value(torch.inf), r"pixels lie in \[.*, inf\]"),
        (with_value(torch.nan), "images hold NaN"),
    ],
)
def test_what_is_refused(x: Tensor, message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        guard().judge(x)
    assert "\n" not in str(caught.value)


def test_threads_may_share_one() -> None:
    made = guard(batch_size=2)
    batches = [images(11, seed) for seed in range(24)]
    alone = [made.judge(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(made.judge, batches))
    for one, other in zip(alone, together, strict=True):
        for part, same in zip(one, other, strict=True):
            torch.testing.assert_close(part, same)


@pytest.mark.parametrize("layer", [None, "body.1"])
def test_load(layer: str | None, tmp_path: Path) -> None:
    made = guard()
    if layer is not None:
        with torch.no_grad():
            seen = made.model.get_submodule(layer)(made.model.body[0](images()))
        made.detector = build_detector("gaussian", covariance="tied", layer=layer).fit(seen, torch.arange(60) % 3)
        torch.testing.assert_close(made.judge(images()).scores, made.detector.score(seen))
    assert isinstance(made.model, nn.Module)
    save_model(made.model, tmp_path / "model")
    save_detector(made.detector, made.calibration, weights_sha256(tmp_path / "model"), tmp_path / "detector")
    loaded = Guard.load(tmp_path / "model", tmp_path / "detector")
    assert loaded.calibration == made.calibration
    for part, same in zip(loaded.judge(images()), made.judge(images()), strict=True):
        assert torch.equal(part, same)

    save_model(build_model("mlp", 3, SHAPE, width=8), tmp_path / "other")
    with pytest.raises(TrlError, match="fitted to another model"):
        Guard.load(tmp_path / "other", tmp_path / "detector")
    (tmp_path / "detector/detector.safetensors").unlink()
    with pytest.raises(TrlError, match=r"detector\.safetensors: cannot be read"):
        Guard.load(tmp_path / "model", tmp_path / "detector")
