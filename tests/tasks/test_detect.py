"""The stage on a small network: what its detector learns from, and that its files say what its code found."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.tiny import TINY
from tasks.attack import attack_model
from tasks.detect import detect
from tasks.paths import RecipePaths
from tasks.stage import Stage
from tests.helpers import ROOT
from tests.helpers.synthetic_results import name_weights, write_model
from trl.common.errors import TrlError
from trl.config import load_params
from trl.data import ImageSet, Splits, load_dataset, load_splits, save_splits, split
from trl.detection.figures import detection_auc
from trl.detectors import load_detector
from trl.detectors.observe import embed
from trl.models import build_model, load_model, save_model, weights_sha256
from trl.results import DetectResult

PATHS = RecipePaths("digits").model("um", 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits and a trained network, below a folder."""
    root = tmp_path_factory.mktemp("detect")
    splits = split(load_dataset("digits"), validation=150, seed=0)
    save_splits(splits, root / RecipePaths("digits").data)
    torch.manual_seed(0)
    model = build_model("mlp", 10, (1, 8, 8), width=16, depth=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(splits.train.images / 255), splits.train.labels).backward()
        optimizer.step()
    save_model(model.eval(), root / PATHS.model)
    write_model(root / PATHS.metrics, "um", 0)
    name_weights(root / PATHS.metrics, weights_sha256(root / PATHS.model))
    path = root / PATHS.adversarials / "adversarials.safetensors"
    path.parent.mkdir()
    save_file({"adversarials": splits.test.images[:50] / 255}, path)  # of an attack that found nothing
    return root


@pytest.fixture
def stage(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    """Makes the stage, with other data or settings, in a folder of its own."""
    (tmp_path / "outputs").symlink_to(prepared / "outputs")
    shutil.copytree(prepared / PATHS.metrics, tmp_path / PATHS.metrics)
    monkeypatch.chdir(tmp_path)
    natural = load_splits(RecipePaths("digits").data)

    def make(change: Callable[[Splits], Splits] = lambda splits: splits, **settings: object) -> Stage:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["recipes"]["digits"].update(deepcopy(TINY))
        params["recipes"]["digits"]["detect"].update(settings)
        Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        monkeypatch.setattr("trl.data.load_splits", lambda folder: change(natural))
        return Stage(load_params(), "digits", "um", 0)

    return make


def learnt() -> tuple[bytes, dict]:
    return (PATHS.detector / "detector.safetensors").read_bytes(), json.loads(
        (PATHS.detector / "detector.json").read_text()
    )


def shuffled(images: ImageSet) -> ImageSet:
    """Other images with other labels: those of the classifier's mistakes are among them."""
    return ImageSet(images.images.flip(2), images.labels.flip(0))


def test_the_detector_sees_natural_training_images_alone(stage: Callable[..., Stage]) -> None:
    detect(stage())
    tensors, config = learnt()
    detect(stage(lambda s: replace(s, test=shuffled(s.test)), attacks={"fgsm": {}}, epsilon=0.5))
    assert learnt() == (tensors, config)  # neither test images nor what an attack makes of them
    detect(stage(lambda s: replace(s, validation=shuffled(s.validation))))
    assert learnt()[0] == tensors
    assert learnt()[1]["calibration"]["threshold"] != config["calibration"]["threshold"]
    detect(stage(lambda s: replace(s, train=shuffled(s.train))))
    assert learnt()[0] != tensors


def test_the_files_say_what_was_found(stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str]) -> None:
    detect(stage(false_alarms=0.05))
    found = DetectResult.model_validate_json((PATHS.metrics / "detect.json").read_text())
    assert list(found.detectors) == ["gaussian", "energy"]
    assert (found.detector, found.epsilon, found.false_alarms) == ("gaussian", 0.2, 0.05)
    said = capsys.readouterr().out
    assert "um-0 gaussian: AUC pgd 0." in said
    assert "um-0 energy: AUC pgd 0." in said

    # the stored detector is the one that was measured
    detector, calibration = load_detector(PATHS.detector)
    model, splits = load_model(PATHS.model), load_splits(RecipePaths("digits").data)
    natural = detector.score(embed(model, splits.test.images[:100])[0])
    assert calibration.threshold == found.deployed.threshold
    assert float((natural > calibration.threshold).double().mean()) == found.deployed.false_alarms.value
    validation = detector.score(embed(model, splits.validation.images)[0])
    assert 0.03 < (validation > calibration.threshold).double().mean() <= 0.05

    # the curve begins where nothing is attacked
    rows = [line.split(",") for line in (PATHS.metrics / "detection.csv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [["pgd", "0.0"], ["adaptive", "0.0"], ["pgd", "0.2"], ["adaptive", "0.2"]]
    assert float(rows[0][2]) == float(rows[1][2]) == pytest.approx(0.5)
    assert float(rows[3][2]) <= float(rows[2][2])

    # every image is in the deployed detector's histogram
    scores = [line.split(",") for line in (PATHS.metrics / "scores.csv").read_text().splitlines()[1:]]
    for images, count in (("natural", 100), ("pgd", 100), ("adaptive", 40)):
        assert sum(int(row[4]) for row in scores if row[:2] == ["gaussian", images]) == count

    # ROC curves belong to their figures
    roc = [line.split(",") for line in (PATHS.metrics / "roc.csv").read_text().splitlines()[1:]]
    points = torch.tensor([[float(v) for v in row[3:]] for row in roc if row[:3] == ["gaussian", "pgd", "all"]])
    area = float(torch.trapezoid(points[:, 1], points[:, 0]))
    assert area == pytest.approx(found.deployed.static["pgd"].all.auc.value, abs=0.01)
    rejection = found.deployed.rejection
    assert rejection.worst == list(rejection.adaptive.values())[-1]
    assert rejection.worst.accuracy <= rejection.static["pgd"].accuracy <= rejection.clean.accuracy
    assert not Path("checkpoints/digits/um-0-detect").exists()


def test_detectors_and_analyses_share_a_pass(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each set of images, for each thing that is read: training, validation, test, and two sets of adversarials."""
    passes: list[tuple[int, object]] = []

    def spied(model: nn.Module, x: Tensor, batch_size: int, reads: object) -> tuple[Tensor, Tensor]:
        passes.append((len(x), reads))
        return embed(model, x, batch_size, reads)

    monkeypatch.setattr("trl.detectors.observe.embed", spied)
    detect(stage(detectors={"gaussian": {}, "knn": {}, "energy": {}, "max_logit": {}}))
    sizes = {name: len(getattr(load_splits(RecipePaths("digits").data), name)) for name in ("train", "validation")}
    for reads in ("features", "logits"):
        assert [n for n, read in passes if read == reads and n in (sizes["train"], sizes["validation"], 100)] == [
            *(sizes["train"], sizes["validation"], *([100] * 3)),
        ]


def test_auc_and_its_figures_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, generator=generator), torch.randn(40, generator=generator) + 1
    pairs = (b[:, None] > a).double().mean()
    assert detection_auc(a, b) == pytest.approx(float(pairs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "nose"}, r"recipes\.digits\.detect\.detector: unknown detector 'nose'; detectors has gaussian"),
        ({"detectors": {"nose": {}}}, r"detect\.detectors\.nose: unknown detector 'nose'; known: energy, gaussian"),
        ({"detectors": {"gaussian": {"k": 3}}}, r"detect\.detectors\.gaussian\.k: unknown key; allowed: covariance"),
        ({"false_alarms": 0}, r"detect\.false_alarms: should be greater than 0, not 0"),
        ({"attacks": {"adaptive": {"name": "pgd"}}}, r"'adaptive' is reserved for a worst case"),
        ({"adaptive": {"attacks": {}}}, r"detect\.adaptive\.attacks"),
        (
            {"detectors": {"gaussian": {"layer": "body.7"}}},
            r"detector gaussian: Classifier has no layer 'body\.7'",
        ),
        ({"detectors": {"energy": {"layer": "body"}}}, r"detect\.detectors\.energy\.layer: unknown key"),
        ({"false_alarms": 0.001}, r"detector gaussian: 150 natural images are too few .* give at least 999"),
    ],
)
def test_impossible_settings_are_refused_before_any_attack(
    stage: Callable[..., Stage], settings: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.detection.attacker.attack_all", lambda *a, **k: pytest.fail("an attack was run"))
    with pytest.raises(TrlError, match=message):
        detect(stage(**settings))


def test_what_the_stage_attack_found_counts_too(stage: Callable[..., Stage]) -> None:
    """Images of other classes in the place of adversarials: misclassified, and natural to any detector."""
    made = stage()
    test = load_splits(RecipePaths("digits").data).test
    detect(made)
    before = DetectResult.model_validate_json((PATHS.metrics / "detect.json").read_text()).deployed
    other = torch.stack([test.images[test.labels != label][0] for label in test.labels[:30]]) / 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl.common.arrays.read_safetensors", lambda path: {"adversarials": other})
        detect(made)
        after = DetectResult.model_validate_json((PATHS.metrics / "detect.json").read_text()).deployed
        assert after.static == before.static  # they are no attack of this stage
        assert after.rejection.clean == before.rejection.clean
        assert after.rejection.static["stage attack"].accuracy <= after.rejection.clean.accuracy - 0.6  # 30 of 40
        assert after.rejection.worst.accuracy <= after.rejection.static["stage attack"].accuracy
        assert after.warnings == []
        assert after.adaptive.all.auc.value < before.adaptive.all.auc.value
        detect(stage(epsilon=0.1))  # they may lie outside of a smaller threat
        smaller = DetectResult.model_validate_json((PATHS.metrics / "detect.json").read_text()).deployed
        assert list(smaller.rejection.static) == ["pgd"]


def test_a_warning_is_said_and_kept(stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str]) -> None:
    """One query of Square is no attack: what the detector is then credited with, the classifier alone does not keep."""
    detect(stage(false_alarms=0.1, adaptive={"samples": 100, "attacks": {"square": {"queries": 1}}}))
    found = DetectResult.model_validate_json((PATHS.metrics / "detect.json").read_text()).detectors["gaussian"]
    assert list(found.rejection.adaptive) == ["square selective"]
    (warning,) = found.warnings
    assert warning.startswith(f"credit: with rejection {found.rejection.worst.accuracy:.1%} of 100 images withstand")
    assert f"warning: um-0 gaussian: {warning}\n" in capsys.readouterr().out


@pytest.mark.parametrize("work", [attack_model, detect])
def test_other_weights_than_those_of_the_training_are_refused(
    stage: Callable[..., Stage], work: Callable[[Stage], None]
) -> None:
    name_weights(PATHS.metrics, "0" * 64)
    with pytest.raises(TrlError) as caught:
        work(stage())
    other = "measured on other weights than outputs/digits/um-0/model holds"
    assert str(caught.value) == f"metrics/digits/um-0: {other}; run `dvc repro`"
    (PATHS.metrics / "train.json").unlink()
    with pytest.raises(TrlError, match=r"train.json: .*run the train stage"):
        work(stage())
