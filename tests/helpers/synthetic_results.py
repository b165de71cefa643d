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
SHIFT = {"um": 2.8, "at": 1.8, "alp": 1.6, "tla": 2.3}  # of the detectors' scores, in standard deviations
# Of each detector: how much of this shift it sees, and how much less once an attack knows it.
DETECTORS = {"knn": (0.8, 0.6), "gaussian": (1.0, 0.7), "energy": (1.1, 3.2)}
DEPLOYED = "gaussian"
DETECTION_ATTACKS = {"pgd": 1.0, "cw": 0.7}  # how much of the shift each causes
ADAPTIVE_ATTACKS = ("apgd selective", "apgd orthogonal", "square selective")


def add_threats(folder: Path) -> None:
    """A further threat, with a region, in the attack.json of every model under `folder`."""
    for path in folder.glob("*/attack.json"):
        found = json.loads(path.read_text())
        worst = found["robust"]["worst"]
        region = {"name": "background", "threshold": 0.1}
        robust = {"autoattack": worst, "worst": interval(worst["accuracy"] + 0.02)}
        found["threats"] = {"local": {"norm": "linf", "epsilon": EPSILON, "region": region, "robust": robust}}
        found["union"] = interval(worst["accuracy"] * 0.99)
        write_json(path, found)


def write_metrics(folder: Path, methods: Sequence[str] = METHODS, seeds: Sequence[int] = (0,)) -> Path:
    """Write the files of every method and seed under `folder`; an unknown method looks like `at`."""
    for method in methods:
        for seed in seeds:
            write_model(folder / f"{method}-{seed}", method, seed)
    return folder


def name_weights(folder: Path, weights: str) -> None:
    """Let train.json in a model's folder speak of the weights with this SHA-256."""
    path = folder / "train.json"
    write_json(path, json.loads(path.read_text()) | {"weights": weights})


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
            "settings": {"precision": "fp32", "attacks": {name: spec(name, 40) for name in ATTACKS}},
        },
    )
    write_curve(folder / "curve.csv", clean, robust)
    write_detection(folder, kind, rng)
    write_tsne(folder / "tsne.csv", kind, rng)


def write_certificates(folder: Path, methods: Sequence[str], seeds: Sequence[int] = (0,)) -> Path:
    """Add the files of stage certify to those of the methods."""
    for method in methods:
        for seed in seeds:
            place, right = folder / f"{method}-{seed}", 0.95 - 0.01 * seed
            settings = {"sigma": 0.5, "selection": 100, "samples": 10_000, "alpha": 0.001}
            figures = {"accuracy": interval(right), "abstained": 0.02, "mean_radius": 0.7 + 0.01 * seed}
            write_json(place / "certify.json", settings | figures)
            points = [(radius, interval(right - 0.4 * radius)) for radius in (0.0, 0.25, 0.5, 1.0)]
            rows = [{"radius": r} | {k: point[k] for k in ("accuracy", "low", "high")} for r, point in points]
            write_csv(place / "certified.csv", rows)
    return folder


def write_ensemble(folder: Path, name: str, methods: Sequence[str] = ("um", "at", "tla"), seeds: Any = (0,)) -> None:
    """The files of an ensemble of these methods, beside those of `write_metrics`."""
    found = {}
    for seed in seeds:
        shares = {"clean": 0.01, "average": 0.2 + 0.01 * seed, "minmax": 0.26}
        fooled = {k: {"all": figure(s), "each": {m: figure(s + 0.03) for m in methods}} for k, s in shares.items()}
        weights = {method: 1 / len(methods) for method in methods}
        gain = {"value": 0.06 - 0.01 * seed, "low": 0.03, "high": 0.08}
        found[seed] = {"n": SAMPLES, **fooled, "weights": weights, "gain": gain}
    (folder / "ensembles" / name).mkdir(parents=True)
    content = {"epsilon": EPSILON, "methods": list(methods), "seeds": found}
    write_json(folder / "ensembles" / name / "ensemble.json", content)


def spec(name: str, steps: int) -> dict[str, Any]:
    return {"name": name, "options": {"steps": steps}}


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
    """detect.json, roc.csv, scores.csv and detection.csv, all from scores that are drawn from normal distributions."""
    correct = rng.random(SAMPLES) < CLEAN[kind]
    fooled = ~correct | (rng.random(SAMPLES) > ROBUST[kind]) | (kind == "um")  # on the undefended model nothing fails
    detectors: dict[str, Any] = {}
    roc, bins = list[dict[str, Any]](), list[dict[str, Any]]()
    for detector, (sees, loses) in DETECTORS.items():
        natural = rng.normal(0, 1, SAMPLES)
        scores = {a: rng.normal(SHIFT[kind] * factor * sees, 1, SAMPLES) for a, factor in DETECTION_ATTACKS.items()}
        lost = loses * (4 if kind == "um" else 1)
        scores["adaptive"] = scores["pgd"] - np.abs(rng.normal(lost, 0.3, SAMPLES))
        subsets = {attack: by_subset(natural, found, fooled) for attack, found in scores.items()}
        threshold = float(np.quantile(natural, 0.99)) + rng.normal(0, 0.05)
        kept = {a: correct & (natural <= threshold) & ~(fooled & (s <= threshold)) for a, s in scores.items()}
        left = np.all(list(kept.values()), axis=0).mean()
        detectors[detector] = {
            "threshold": threshold,
            "false_alarms": figure((natural > threshold).mean()),
            "static": {attack: subsets[attack] for attack in DETECTION_ATTACKS},
            "adaptive": subsets["adaptive"],
            "rejection": {
                "clean": interval((correct & (natural <= threshold)).mean()),
                "static": {attack: interval(kept[attack].mean()) for attack in DETECTION_ATTACKS},
                "adaptive": {a: interval(left + 0.01 * (2 - i)) for i, a in enumerate(ADAPTIVE_ATTACKS)},
                "worst": interval(left),
            },
            "warnings": ["credit: more than <plain>"] if (kind, detector) == ("at", "knn") else [],
        }
        for attack, found in scores.items():
            for subset, chosen in members(fooled).items():
                if chosen.any():
                    curve = {"detector": detector, "attack": attack, "subset": subset}
                    roc += [
                        curve | {"fpr": (natural > t).mean(), "tpr": (found[chosen] > t).mean()}
                        for t in np.linspace(6, -6, 80)
                    ]
        edges = np.linspace(*np.quantile([natural, *scores.values()], [0.005, 0.995]), 41)
        for images, found in {"natural": natural, **scores}.items():
            counts, _ = np.histogram(np.clip(found, edges[0], edges[-1]), edges)
            edged = zip(edges[:-1], edges[1:], counts, strict=True)
            bins += [
                {"detector": detector, "images": images, "low": low, "high": high, "count": n} for low, high, n in edged
            ]
    write_csv(folder / "roc.csv", roc)
    write_csv(folder / "scores.csv", bins)
    write_detection_curve(folder / "detection.csv", detectors[DEPLOYED])
    shift = 1.2 + SHIFT[kind] / 6 + rng.normal(0, 0.01)
    write_json(
        folder / "detect.json",
        {
            "epsilon": EPSILON,
            "false_alarms": 0.01,
            "detector": DEPLOYED,
            "detectors": detectors,
            "validation": {"auc": 0.9, "adaptive_auc": 0.7, "clean": CLEAN[kind], "robust": ROBUST[kind]},
            "representation": {"r": shift, "r_prime": None if kind == "um" else 3 - shift},
            "settings": {"attacks": {name: spec(name, 20) for name in DETECTION_ATTACKS}},
            "knn": {"natural": CLEAN[kind] + rng.normal(0, 0.003), "adversarial": ROBUST[kind]},
        },
    )


def write_detection_curve(path: Path, detector: dict[str, Any]) -> None:
    first = next(iter(DETECTION_ATTACKS))
    rows = []
    for attack, subsets in {first: detector["static"][first], "adaptive": detector["adaptive"]}.items():
        auc = subsets["all"]["auc"]["value"]
        for epsilon in np.linspace(0, 2 * EPSILON, 9):
            point = figure(0.5 + (auc - 0.5) * (1 - math.exp(-3 * epsilon / EPSILON)))
            rows.append({"attack": attack, "epsilon": epsilon, "auc": point["value"]} | point)
    write_csv(path, [{name: row[name] for name in ("attack", "epsilon", "auc", "low", "high")} for row in rows])


def by_subset(natural: np.ndarray, adversarial: np.ndarray, fooled: np.ndarray) -> dict[str, Any]:
    return {
        subset: figures(natural, adversarial[chosen]) if chosen.any() else None
        for subset, chosen in members(fooled).items()
    }


def members(fooled: np.ndarray) -> dict[str, np.ndarray]:
    return {"all": np.ones_like(fooled), "successful": fooled, "failed": ~fooled}


def figures(natural: np.ndarray, adversarial: np.ndarray) -> dict[str, Any]:
    auc = (adversarial[:, None] > natural).mean()
    found = {alarms: (adversarial > np.quantile(natural, 1 - alarms)).mean() for alarms in (0.01, 0.05)}
    alarms = (natural > np.quantile(adversarial, 0.05)).mean()
    values = {"auc": auc, "aupr": auc + 0.01, "fpr95": alarms, "tpr01": found[0.01], "tpr05": found[0.05]}
    return {name: figure(value) for name, value in values.items()}


def figure(value: float) -> dict[str, float]:
    value = min(float(value), 1.0)
    half = 1.2 * math.sqrt(max(value * (1 - value), 1e-5) / SAMPLES)
    return {"value": value, "low": max(value - half, 0.0), "high": min(value + half, 1.0)}


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
