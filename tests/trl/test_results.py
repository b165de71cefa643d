import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.helpers.synthetic_results import METHODS, write_certificates, write_metrics
from trl.common.errors import TrlError
from trl.report import load_results
from trl.results import (
    AttackResult,
    CertifiedPoint,
    CertifyResult,
    CurvePoint,
    DetectionPoint,
    DetectResult,
    Document,
    Epoch,
    RocPoint,
    Row,
    ScoreBin,
    TrainResult,
    TsnePoint,
)

FILES = {
    "training.csv": "train",
    "train.json": "train",
    "attack.json": "attack",
    "curve.csv": "attack",
    "detect.json": "detect",
    "roc.csv": "detect",
    "scores.csv": "detect",
    "detection.csv": "detect",
    "tsne.csv": "detect",
    "certify.json": "certify",
    "certified.csv": "certify",
}

DOCUMENTS: tuple[type[Document], ...] = (TrainResult, AttackResult, DetectResult, CertifyResult)
ROWS: tuple[type[Row], ...] = (Epoch, CurvePoint, RocPoint, ScoreBin, DetectionPoint, TsnePoint, CertifiedPoint)


def written(folder: Path, methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0,)) -> Path:
    """The files of every stage."""
    return write_certificates(write_metrics(folder, methods, seeds), methods, seeds)


def refusal(folder: Path, *methods: str) -> str:
    with pytest.raises(TrlError) as caught:
        load_results(folder, methods, [0], methods)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_models_come_in_the_order_asked_for_with_the_values_of_their_files(tmp_path: Path) -> None:
    written(tmp_path, seeds=(0, 7))
    results = load_results(tmp_path, ("tla", "um"), (7, 0))
    assert [(m.method, m.seed) for m in results.models] == [("tla", 7), ("tla", 0), ("um", 7), ("um", 0)]
    assert [m.seed for m in results.of("um")] == [7, 0]
    stored = json.loads((tmp_path / "tla-7" / "attack.json").read_text())
    assert results.models[0].attack.robust["pgd"].accuracy == stored["robust"]["pgd"]["accuracy"]
    assert (results.epsilon, results.detection_attacks) == (0.2, ["pgd", "cw"])
    assert results.detectors == ["gaussian", "knn", "energy"]  # the deployed one first
    found = json.loads((tmp_path / "tla-7" / "detect.json").read_text())["detectors"]["gaussian"]
    deployed = results.models[0].detect.deployed
    assert deployed.adaptive.successful is not None
    assert deployed.adaptive.successful.tpr05.high == found["adaptive"]["successful"]["tpr05"]["high"]
    assert deployed.rejection.worst.value == found["rejection"]["worst"]["accuracy"]
    assert results.models[0].curve[0].epsilon == 0
    assert {point.kind for point in results.models[0].tsne} == {"natural", "adversarial"}


def test_certificates_are_read_for_the_methods_that_were_certified(tmp_path: Path) -> None:
    write_certificates(write_metrics(tmp_path), ["um", "tla"])
    results = load_results(tmp_path, METHODS, [0], ["tla"])  # that of um is left over
    assert results.certified == ["tla"]
    certified = {model.method: (model.certify, len(model.certified)) for model in results.models}
    assert certified["um"] == certified["at"] == (None, 0)
    found, points = certified["tla"]
    assert found is not None
    assert (found.sigma, found.images, points) == (0.5, 597, 4)
    assert load_results(tmp_path, METHODS, [0]).certified == []


def test_worst_is_the_last_attack_wherever_the_file_has_it(tmp_path: Path) -> None:
    written(tmp_path, ["at"])
    path = tmp_path / "at-0" / "attack.json"
    change(path, lambda c: c.update(robust={"worst": c["robust"].pop("worst"), **c["robust"]}))
    assert load_results(tmp_path, ["at"], [0]).attacks == ["fgsm", "bim", "pgd", "cw", "mim", "worst"]


def test_empty_fields_and_nulls_are_nan(tmp_path: Path) -> None:
    model = load_results(written(tmp_path), METHODS, [0]).of("um")[0]
    assert math.isnan(model.epochs["val_clean"][0])
    assert model.epochs["val_clean"][1] > 0
    assert model.detect.deployed.static["pgd"].failed is None
    assert math.isnan(model.detect.representation.r_prime)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named_with_the_stage_that_makes_it(tmp_path: Path, file: str) -> None:
    path = written(tmp_path, ["um", "at"]) / "at-0" / file
    path.unlink()
    message = refusal(tmp_path, "um", "at")
    assert message.startswith(f"{path}: No such file")
    assert f"run the {FILES[file]} stage (`dvc repro`)" in message


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"a,b\n1\n"])
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    path = written(tmp_path, ["at"]) / "at-0" / file
    path.write_bytes(content)
    message = refusal(tmp_path, "at")
    assert message.startswith(f"{path}: ")
    assert "`dvc repro`" in message


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".csv")])
def test_a_row_cut_short_is_broken(tmp_path: Path, file: str) -> None:
    path = written(tmp_path, ["at"]) / "at-0" / file
    path.write_text(path.read_text().rstrip().rpartition(",")[0])
    assert str(path) in refusal(tmp_path, "at")


@pytest.mark.parametrize("file", ["curve.csv", "detection.csv", "certified.csv"])
def test_curves_over_other_epsilons_are_not_compared(tmp_path: Path, file: str) -> None:
    path = written(tmp_path, ["um", "at"]) / "at-0" / file
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert refusal(tmp_path, "um", "at").startswith(f"{path}: ")


@pytest.mark.parametrize("accuracy", [1.5, -0.1, math.nan, None, "high"])
def test_an_accuracy_is_a_share(tmp_path: Path, accuracy: object) -> None:
    path = written(tmp_path, ["at"]) / "at-0" / "attack.json"
    change(path, lambda c: c["robust"]["pgd"].update(accuracy=accuracy))
    assert refusal(tmp_path, "at").startswith(f"{path}: robust.pgd.accuracy: ")


def test_an_evaluation_without_worst_case_is_broken(tmp_path: Path) -> None:
    path = written(tmp_path, ["at"]) / "at-0" / "attack.json"
    change(path, lambda c: c["robust"].pop("worst"))
    assert "no entry 'worst'" in refusal(tmp_path, "at")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda c: c["detectors"].pop("gaussian"), "detectors: no entry 'gaussian'"),
        (lambda c: c["detectors"]["knn"]["static"].pop("cw"), "detectors.knn: static: not the attacks of the others"),
        (lambda c: c["detectors"]["knn"]["rejection"]["static"].pop("cw"), "detectors.knn: static: not the attacks"),
        (lambda c: c["detectors"]["knn"]["adaptive"]["all"].pop("aupr"), "detectors.knn.adaptive.all.aupr: "),
        (lambda c: c["detectors"]["knn"]["adaptive"].update(all=None), "detectors.knn.adaptive.all: "),
        (lambda c: c["detectors"]["knn"]["adaptive"].pop("failed"), "detectors.knn.adaptive.failed: "),
        (lambda c: c["detectors"]["knn"].update(threshold=None), "detectors.knn.threshold: "),
    ],
)
def test_detectors_have_the_same_attacks_and_every_figure(
    tmp_path: Path, edit: Callable[[dict], None], why: str
) -> None:
    path = written(tmp_path, ["at"]) / "at-0" / "detect.json"
    change(path, edit)
    assert refusal(tmp_path, "at").startswith(f"{path}: {why}")


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("attack.json", lambda c: c.update(epsilon=0.3)),
        ("attack.json", lambda c: c["robust"].pop("cw")),
        ("certify.json", lambda c: c.update(sigma=0.25)),
        ("certify.json", lambda c: c.update(samples=1000)),
        ("certify.json", lambda c: c["accuracy"].update(n=100)),
        ("detect.json", lambda c: c.update(epsilon=0.3)),
        ("detect.json", lambda c: c.update(false_alarms=0.05)),
        ("detect.json", lambda c: c.update(detector="knn")),
        ("detect.json", lambda c: c["detectors"].pop("knn")),
        (
            "detect.json",
            lambda c: [
                f[k].pop("cw") for d in c["detectors"].values() for f, k in ((d, "static"), (d["rejection"], "static"))
            ],
        ),
    ],
)
def test_models_measured_differently_are_not_compared(tmp_path: Path, file: str, edit: Callable[[dict], None]) -> None:
    path = written(tmp_path, ["um", "at"]) / "at-0" / file
    change(path, edit)
    message = refusal(tmp_path, "um", "at")
    assert message.startswith(f"{path}: ")
    assert str(tmp_path / "um-0" / file) in message


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_document_is_written_as_it_was_read(tmp_path: Path, kind: type[Document]) -> None:
    """What does not exist included: null for a number, and no entry for what has none."""
    folder = written(tmp_path, ["um"]) / "um-0"
    before = json.loads((folder / kind.file).read_text())
    assert FILES[kind.file] == kind.stage
    for left_out in ("stages", "warnings"):
        before.pop(left_out, None)
        kind.model_validate(before).write(tmp_path)
        assert json.loads((tmp_path / kind.file).read_text()) == kind.read(tmp_path).content()
        assert json.loads((tmp_path / kind.file).read_text()).keys() == before.keys()
    assert "NaN" not in (tmp_path / kind.file).read_text()


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_written_as_they_were_read(tmp_path: Path, kind: type[Row]) -> None:
    folder = written(tmp_path, ["tla"]) / "tla-0"
    kind.write(tmp_path, kind.read(folder))
    before, after = (list(csv.reader((at / kind.file).open())) for at in (folder, tmp_path))
    assert FILES[kind.file] == kind.stage
    assert after == before


def test_an_objectives_terms_are_columns_of_their_own() -> None:
    row = {"epoch": 1, "lr": 0.1, "loss": 2, "ce": 1.5, "norm": 3.0, "accuracy": 0.5, "seconds": 1}
    epoch = Epoch(**row, val_clean=None, val_robust=None)
    assert epoch.terms == {"ce": 1.5, "norm": 3.0}
    assert list(epoch.columns) == [*row, "val_clean", "val_robust"]
    assert epoch.model_dump() == row | {"val_clean": None, "val_robust": None}


def test_what_makes_no_sense_is_not_written(tmp_path: Path) -> None:
    found = AttackResult.read(written(tmp_path, ["at"]) / "at-0")
    for wrong in ({"robust": {}}, {"epsilon": "large"}, {"clean": {"accuracy": 2}}):
        with pytest.raises(ValidationError):
            AttackResult.model_validate(found.content() | wrong)
