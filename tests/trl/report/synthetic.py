"""Result files as a pipeline run leaves them, with figures that look like those of the digits recipe."""

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("um", "at", "alp", "tla")
ATTACKS = {"fgsm": 1.15, "bim": 1.06, "pgd": 1.0, "cw": 1.02, "mim": 1.03}  # strength: accuracy ratio to PGD
EPSILON = 0.2
SAMPLES = 597
CLEAN = {"um": 0.985, "at": 0.962, "alp": 0.957, "tla": 0.965}
ROBUST = {"um": 0.004, "at": 0.705, "alp": 0.722, "tla": 0.748}
SHIFT = {"um": 0.4, "at": 0.9, "alp": 0.8, "tla": 1.5}  # of the detector's scores, in standard deviations


def write_metrics(folder: Path, methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0,)) -> Path:
    """Write the files of every method and seed under `folder`; an unknown method looks like `at`."""
    for method in methods:
        for seed in seeds:
            write_model(folder / f"{method}-{seed}", method, seed)
    return folder


def write_model(folder: Path, method: str, seed: int) -> None:
    kind = method if method in METHODS else "at"
    rng = np.random.default_rng([METHODS.index(kind), seed])
    clean, robust = CLEAN[kind] + rng.normal(0, 0.004), max(ROBUST[kind] + rng.normal(0, 0.012), 0)
    folder.mkdir(parents=True, exist_ok=True)
    epochs = write_training(folder / "training.csv", kind, clean, robust, rng)
    write_json(
        folder / "train.json",
        {
            "val_clean": clean,
            "val_robust": robust,
            "best_epoch": epochs - 2,
            "epochs": epochs,
            "seconds": 41.3 if kind == "um" else 187.6,
            "parameters": 1_234_567,
            "device": "cpu",
            "weights": hashlib.sha256(folder.name.encode()).hexdigest(),
        },
    )
    accuracies = {name: min(robust * ratio, 0.97) for name, ratio in ATTACKS.items()}
    write_json(
        folder / "attack.json",
        {
            "epsilon": EPSILON,
            "clean": interval(clean),
            "robust": {name: interval(a) for name, a in accuracies.items()} | {"worst": interval(robust * 0.97)},
            "stages": {"autoattack": {"apgd_ce": interval(robust), "square": interval(robust * 0.98)}},
            "cost": {"pgd": {"forwards": 2400, "backwards": 2400}},
            "warnings": ["flat: tiny changes do not change the <logits>"] if method == "um" else [],
        },
    )
    write_curve(folder / "curve.csv", clean, robust)
    write_detection(folder, kind, rng)
    write_tsne(folder / "tsne.csv", kind, rng)


def write_training(path: Path, kind: str, clean: float, robust: float, rng: np.random.Generator) -> int:
    epochs, rows = 40, []
    for epoch in range(1, epochs + 1):
        left = math.exp(-epoch / 8)
        terms = {"ce": (0.05 if kind == "um" else 0.45) + 1.8 * left + rng.normal(0, 0.01)}
        if kind == "alp":
            terms["alp"] = 0.3 * (1 - left)
        if kind == "tla":
            terms |= {"triplet": 0.02 + 0.1 * left, "norm": 8.0, "active": 0.15 + 0.8 * left}
            terms |= {"positive_distance": 0.1 + 0.5 * left, "negative_distance": 0.35 + 0.35 * left}
        validated = epoch % 2 == 0
        rows.append(
            {"epoch": epoch, "lr": 1e-3, "loss": terms["ce"] + terms.get("alp", 0) + terms.get("triplet", 0)}
            | terms
            | {"accuracy": clean - 0.6 * left, "seconds": 4.1}
            | {"val_clean": clean - 0.7 * left + rng.normal(0, 0.005) if validated else ""}
            | {"val_robust": max(robust * (1 - left) + rng.normal(0, 0.008), 0) if validated else ""}
        )
    write_csv(path, rows)
    return epochs


def write_curve(path: Path, clean: float, robust: float) -> None:
    fall = math.log(clean / max(robust, 1e-6)) / EPSILON**2
    rows = []
    for epsilon in np.linspace(0, 2 * EPSILON, 9):
        point = interval(clean * math.exp(-fall * epsilon**2))
        rows.append({"attack": "pgd", "epsilon": epsilon} | {k: point[k] for k in ("accuracy", "low", "high")})
    write_csv(path, rows)


def write_detection(folder: Path, kind: str, rng: np.random.Generator) -> None:
    natural = rng.normal(0, 1, 600)
    shift = 0.8 + SHIFT[kind] / 6 + rng.normal(0, 0.01)
    auc: dict[str, dict[str, float | None]] = {"all": {}, "successful": {}, "failed": {}}
    rows = []
    for attack, factor in {"pgd": 1.0, "cw": 0.7}.items():
        for subset, more in {"all": 0.0, "successful": 0.4, "failed": -0.3}.items():
            if kind == "um" and subset == "failed":  # no attack on it fails
                auc[subset][attack] = None
                continue
            adversarial = rng.normal(SHIFT[kind] * factor + more, 1, 600)
            auc[subset][attack] = float((adversarial[:, None] > natural).mean())
            for threshold in np.linspace(5, -5, 80):
                fpr, tpr = (natural > threshold).mean(), (adversarial > threshold).mean()
                rows.append({"attack": attack, "subset": subset, "fpr": fpr, "tpr": tpr})
    write_csv(folder / "roc.csv", rows)
    write_json(
        folder / "detect.json",
        {
            "epsilon": EPSILON,
            "detector": "gaussian",
            "auc": auc["all"],
            "auc_successful": auc["successful"],
            "auc_failed": auc["failed"],
            "representation": {"r": shift, "r_prime": None if kind == "um" else 3 - shift},
            "knn": {"natural": CLEAN[kind] + rng.normal(0, 0.003), "adversarial": ROBUST[kind]},
        },
    )


def write_tsne(path: Path, kind: str, rng: np.random.Generator) -> None:
    centres = 30 * np.column_stack([np.cos(np.arange(10) * 0.63), np.sin(np.arange(10) * 0.63)])
    rows = []
    for shown in ("natural", "adversarial"):
        for label in rng.integers(0, 10, 200).tolist():
            stays = shown == "natural" or rng.random() < ROBUST[kind]
            predicted = label if stays else int((label + rng.integers(1, 10)) % 10)
            x, y = centres[predicted] + rng.normal(0, 4, 2)
            rows.append({"x": x, "y": y, "label": label, "predicted": predicted, "kind": shown})
    write_csv(path, rows)


def interval(accuracy: float) -> dict[str, Any]:
    half = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 1e-5) / SAMPLES)
    return {
        "accuracy": accuracy,
        "low": max(accuracy - half, 0.0),
        "high": min(accuracy + half, 1.0),
        "n": SAMPLES,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
