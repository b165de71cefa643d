"""The names in MLflow: what the pages of runs, and saved views of them, are sorted and filtered by."""

import math
from pathlib import Path

import pytest

from tasks.metrics import (
    attack_metrics,
    certify_metrics,
    comparison_metrics,
    detect_metrics,
    epoch_metrics,
    train_metrics,
)
from tests.helpers.synthetic_results import write_certificates, write_metrics
from trl.results import ModelResults, load_model_results, load_results


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelResults]:
    folder = write_metrics(tmp_path_factory.mktemp("metrics"), ["um", "tla"])
    write_certificates(folder, ["tla"])
    return {method: load_model_results(folder, method, 0, method == "tla") for method in ("um", "tla")}


def test_an_epoch(models: dict[str, ModelResults]) -> None:
    first, second = models["tla"].training[:2]
    terms = {"ce", "triplet", "norm", "active", "positive_distance", "negative_distance"}
    curves = {f"train/{name}" for name in {"lr", "loss", "accuracy", "seconds"} | terms}
    assert epoch_metrics(first).keys() == curves | {"train/epoch", "val/clean", "val/robust"}
    assert math.isnan(epoch_metrics(first)["val/robust"])
    assert epoch_metrics(second)["val/robust"] == second.val_robust
    assert epoch_metrics(second)["train/ce"] == second.terms["ce"]


def test_training_and_attacks(models: dict[str, ModelResults]) -> None:
    found = models["tla"]
    assert train_metrics(found.train) == {
        "train/best_epoch": 38,
        "train/parameters": 1_234_567,
        "train/total_seconds": 187.6,
    }
    robust = attack_metrics(found.attack)
    assert robust["clean/accuracy"] == found.attack.clean.accuracy
    assert robust["robust/worst"] == found.attack.robust["worst"].accuracy
    assert robust["robust/autoattack/square"] == found.attack.stages["autoattack"]["square"].accuracy
    assert robust["robust/warnings"] == 0
    assert attack_metrics(models["um"].attack)["robust/warnings"] == 1


def test_certificates(models: dict[str, ModelResults]) -> None:
    found = models["tla"]
    assert found.certify is not None
    metrics = certify_metrics(found.certify, found.certified)
    radii = {"certified/0", "certified/0.25", "certified/0.5", "certified/1"}
    assert metrics.keys() == radii | {"certified/abstained", "certified/mean_radius"}
    assert metrics["certified/0.5"] == pytest.approx(0.75)
    assert (metrics["certified/abstained"], metrics["certified/mean_radius"]) == (0.02, 0.7)


def test_detection(models: dict[str, ModelResults]) -> None:
    found = models["tla"].detect
    metrics, deployed = detect_metrics(found), found.deployed
    for attack, subsets in {**deployed.static, "adaptive": deployed.adaptive}.items():
        for name in ("auc", "aupr", "fpr95", "tpr01", "tpr05"):
            assert metrics[f"detect/{name}/{attack}"] == getattr(subsets.all, name).value
        assert subsets.failed is not None
        assert metrics[f"detect/auc_failed/{attack}"] == subsets.failed.auc.value
    for name in ("knn", "energy"):
        other = found.detectors[name]
        kept = {key for key in metrics if key.startswith(f"detect/{name}/")}
        ends = ("auc/pgd", "auc/cw", "auc/adaptive", "reject/worst", "warnings")
        assert kept == {f"detect/{name}/{end}" for end in ends}
        assert metrics[f"detect/{name}/auc/adaptive"] == other.adaptive.all.auc.value
    rejecting = {"clean", "pgd", "cw", "apgd selective", "apgd orthogonal", "square selective", "worst"}
    assert {key.partition("/")[2] for key in metrics if key.startswith("reject/")} == rejecting
    assert metrics["validation/adaptive_auc"] == found.validation.adaptive_auc
    assert metrics["knn/adversarial"] == found.knn.adversarial
    undefended = detect_metrics(models["um"].detect)
    assert "detect/auc_failed/pgd" not in undefended  # there are none
    assert math.isnan(undefended["representation/r_prime"])


def test_a_comparison_has_each_methods_mean_and_the_worst_case_first(tmp_path: Path) -> None:
    found = load_results(write_metrics(tmp_path, ["um", "tla"], [0, 1]), ["um", "tla"], [0, 1])
    metrics = comparison_metrics(found)
    assert next(iter(metrics)) == "um/robust/worst"
    worst = [model.attack.robust["worst"].accuracy for model in found.of("tla")]
    assert metrics["tla/robust/worst"] == pytest.approx(sum(worst) / 2)
    assert {"um/robust/pgd", "um/clean/accuracy", "tla/detect/auc/adaptive", "tla/reject/worst"} < metrics.keys()
