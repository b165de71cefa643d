"""Detectors on disk: damage is named. That what is loaded scores as what was saved is in test_contract."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.natural_embeddings import embeddings
from trl.common.errors import TrlError
from trl.detectors import Calibration, Detector, build_detector, load_detector, save_detector
from trl.detectors.gaussian import GaussianDetector

CALIBRATION = Calibration(0.1, 3.25, 1.5)
FILES = ["detector.json", "detector.safetensors"]


def fitted(name: str = "gaussian", **options: Any) -> Detector:
    return build_detector(name, **options).fit(*embeddings())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_detector(fitted(), CALIBRATION, "abc", tmp_path)
    return tmp_path


def refused(folder: Path, message: str) -> None:
    with pytest.raises(TrlError, match=message) as caught:
        load_detector(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_same_content_gives_the_same_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    save_detector(load_detector(folder)[0], CALIBRATION, "abc", other)
    assert sorted(path.name for path in other.iterdir()) == FILES
    for file in FILES:
        assert (folder / file).read_bytes() == (other / file).read_bytes()


def test_what_comes_back(folder: Path) -> None:
    detector, calibration = load_detector(folder, "cpu", "abc")
    assert calibration == CALIBRATION
    assert not detector.training
    detector.fit(*embeddings(60, 4))  # and can be fitted anew
    assert detector.score(torch.zeros(1, 4)).isfinite()


def test_another_models_detector_is_refused(folder: Path) -> None:
    with pytest.raises(TrlError, match="fitted to another model"):
        load_detector(folder, weights="abd")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for detector in (build_detector("gaussian"), GaussianDetector().fit(*embeddings())):
        with pytest.raises(TrlError, match="cannot save this GaussianDetector: make it with build_detector and fit"):
            save_detector(detector, CALIBRATION, "abc", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(folder, f"{file}: cannot be read")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0, 7, -9])
def test_a_truncated_file(folder: Path, file: str, keep: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, f"{file}: damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(name="nose"), "unknown detector 'nose'"),
        (lambda c: c.update(colour="red"), "colour: unknown key"),
        (lambda c: c.pop("weights"), "weights: is missing"),
        (lambda c: c["options"].update(colour="red"), "colour: unknown key"),
        (lambda c: c["options"].update(name="gmm"), "detector.json: "),
        (
            lambda c: c["options"].update(covariance="tied"),
            r"whitenings is .* \[3, 6, 6\], not torch.float64 \[1,d,d\]",
        ),
        (lambda c: c["options"].update(covariance="diagonal"), r"whitenings is .*, not torch.float64 \[k,d\]"),
        (lambda c: c.update(name="gmm", options={}), "holds means, whitenings, width instead of log_weights, means"),
        (lambda c: c.update(name="energy", options={}), "holds means, whitenings, width instead of width"),
        (lambda c: c["calibration"].update(threshold=float("nan")), "calibration.threshold: "),
        (lambda c: c["calibration"].update(threshold="high"), "calibration.threshold: "),
        (lambda c: c["calibration"].update(scale=0), "calibration.scale: "),
        (lambda c: c["calibration"].update(false_alarms=1), "calibration.false_alarms: "),
        (lambda c: c["calibration"].update(colour="red"), "calibration.colour: "),
        (lambda c: c["calibration"].pop("scale"), "calibration.scale: "),
        (lambda c: c.update(calibration=None), "calibration: "),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, change: Callable[[dict], None], message: str) -> None:
    config = json.loads((folder / "detector.json").read_text())
    change(config)
    (folder / "detector.json").write_text(json.dumps(config))
    refused(folder, message)


def with_value(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    return lambda learnt: learnt[name].view(-1)[-1:].fill_(value)


def with_shape(name: str, reshape: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda learnt: learnt.update({name: reshape(learnt[name]).contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, "holds nothing instead of means, whitenings, width"),
        (lambda t: t.pop("width"), "holds means, whitenings instead of means, whitenings, width"),
        (lambda t: t.pop("means"), "holds whitenings, width instead of"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, means, "),
        (with_value("means", torch.nan), "means is empty, or holds NaN"),
        (with_value("whitenings", torch.inf), "whitenings is empty, or holds NaN or infinite"),
        (with_shape("means", lambda t: t[:2]), r"whitenings is .*\[3, 6, 6\], not torch.float64 \[k,d,d\]"),
        (with_shape("means", lambda t: t[:, :1]), r"means is .*\[3, 1\], not torch.float64 \[k,d\]"),
        (with_shape("means", lambda t: t[0]), r"means is .*\[6\], not torch.float64 \[k,d\]"),
        (with_shape("whitenings", lambda t: t[..., None]), r"\[3, 6, 6, 1\], not torch.float64 \[k,d,d\]"),
        (with_shape("means", lambda t: t.float()), r"means is torch.float32 \[3, 6\], not torch.float64"),
        (with_shape("width", lambda t: t.double()), "width is torch.float64 "),
        (with_shape("width", lambda t: t[None]), r"width is torch.int64 \[1\]"),
        (with_value("whitenings", -1), "scores made with means, whitenings are not finite"),
        (with_value("width", 5), r"means is .*\[3, 6\], not torch.float64 \[k,d\]"),
        (with_value("width", -1), r"means is .*\[3, 6\], not torch.float64 \[k,d\]"),
        (
            lambda t: t.update(means=torch.zeros(0, 6).double(), whitenings=torch.zeros(0, 6, 6).double()),
            "means is empty",
        ),
    ],
)
def test_tensors_that_no_such_detector_learns(
    folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path = folder / "detector.safetensors"
    learnt = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(learnt)
    save_file(learnt, path)
    refused(folder, f"not the parameters of a gaussian detector: .*{message}.*; run the detect stage again")


@pytest.mark.parametrize("name", ["energy", "knn", "gmm"])
def test_shapes_of_the_others(name: str) -> None:
    learnt = fitted(name).state_dict()
    build_detector(name).restore(learnt)
    for key in learnt:
        for broken in (learnt[key][None], learnt[key].float()):
            with pytest.raises(TrlError, match=f"{key} is "):
                build_detector(name).restore({**learnt, key: broken})
    with pytest.raises(TrlError, match=r"width is 0|not torch\.float64"):
        build_detector(name).restore({**learnt, "width": torch.tensor(0)})
