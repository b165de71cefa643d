"""Compare Deep Pursuit's numbers of sweeps: robust accuracy under white-box and black-box attacks, and a sweep's cost.

    python -m benchmarks.pursuit [--recipe NAME] [--seeds N] [--only accuracy|cost] [--out FILE.json]

Trains and evaluates every method of a recipe of params.yaml whose models are `deep_pursuit`, with the recipe's data,
training and attacks; `--out` is written after each model. The cost of T sweeps is the processor time of a pass of 200
noise images relative to that of the plain ReLU network (T = 0), the median over turns that both take.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe, headline
from trl.attacks import build_attack, build_attack_at
from trl.common.progress import say
from trl.common.seeds import derive_seed
from trl.config import Recipe, load_params
from trl.data import Splits, TrainingData, load_dataset, split
from trl.evaluation import evaluate
from trl.models import build_model
from trl.objectives import build_objective
from trl.objectives.base import Setting
from trl.threat import build_threat
from trl.training import train

TURNS, IMAGES = 20, 200
COSTS: dict[str, dict[str, Any]] = {  # networks to time
    "T = 0": {"sweeps": 0},
    "T = 5": {"sweeps": 5},
    "T = 10": {"sweeps": 10},
    "T = 10, no momentum": {"sweeps": 10, "momentum": 0},
    "layered, T = 10": {"sweeps": 10, "pursuit": "layered"},
}


def fit(recipe: Recipe, method: str, splits: Splits, seed: int) -> nn.Module:
    """The model of the best epoch, as the stage `train` makes it."""
    torch.manual_seed(derive_seed(seed, "weights"))
    architecture, config = recipe.model_of(method), recipe.train
    model = build_model(architecture.name, len(splits.classes), splits.train.shape, **architecture.options)
    threat = build_threat(**recipe.threat.model_dump())
    setting = Setting(TrainingData(splits.train, "cpu"), threat, config.label_smoothing, seed, model.head.in_features)
    validation = config.validation.attack
    outcome = train(
        model,
        build_objective(recipe.methods[method].name, setting, **recipe.methods[method].options),
        setting,
        partial(build_attack_at, name=config.attack.name, threat=threat, **config.attack.options),
        splits.validation,
        build_attack(validation.name, threat, **validation.options),
        config,
    )
    model.load_state_dict(outcome.state)
    return model


def measure(recipe: Recipe, model: nn.Module, splits: Splits, samples: int, seed: int) -> dict[str, Any]:
    """Accuracies by attack, and how many images each attack alone fools."""
    threat = build_threat(**recipe.threat.model_dump())
    attacks = {name: build_attack(spec.name, threat, **spec.options) for name, spec in recipe.attack.attacks.items()}
    images, labels = splits.test.images[:samples], splits.test.labels[:samples]
    found = evaluate(model, images, labels, attacks, threat, seed=seed)
    correct = found.correct
    black, white = correct["square"], torch.stack([correct[n] for n in attacks if n != "square"]).all(0)
    figures = {name: float(flags.float().mean()) for name, flags in correct.items()}
    return figures | {
        "worst": float(found.worst.float().mean()),
        "white-box": float(white.float().mean()),
        "fooled by square alone": int((white & ~black).sum()),
        "images": len(labels),
        "signs": [sign.name for sign in found.signs],
    }


def costs(recipe: Recipe, splits: Splits, seed: int) -> dict[str, Any]:
    """Processor times of a forward pass, and of one with its backward to images and weights, relative to T = 0."""
    torch.manual_seed(seed)
    options = recipe.model.options
    models = {
        name: build_model(recipe.model.name, len(splits.classes), splits.train.shape, **options | changes)
        for name, changes in COSTS.items()
    }
    x = torch.rand(IMAGES, *splits.train.shape).requires_grad_()

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)

    def both(model: nn.Module) -> None:
        model(x).square().sum().backward()

    passes = {"forward": forward, "forward and backward": both}
    found: dict[str, Any] = {}
    for kind, run in passes.items():
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(TURNS):
            for name, model in models.items():
                started = time.process_time()  # of this process alone, whatever else runs on the machine
                run(model)
                times[name].append(time.process_time() - started)
        plain = times["T = 0"]
        found[kind] = {
            name: {"ms": 1000 * median(t), "relative": median(a / b for a, b in zip(t, plain, strict=True))}
            for name, t in times.items()
        }
    return found


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    attacks, lines = [*found["attacks"], "white-box", "worst"], [headline(found)]
    if found["models"]:
        lines += ["", f"ℓ∞ {found['epsilon']}, accuracy in percent", ""]
        lines += ["| method | seeds | clean | " + " | ".join(attacks) + " | fooled by square alone |"]
        lines += ["|---" * (len(attacks) + 4) + "|"]
    for method, runs in found["models"].items():
        cells = [spread([100 * run[name] for run in runs.values()]) for name in ("clean", *attacks)]
        alone = sum(run["fooled by square alone"] for run in runs.values())
        total = sum(run["images"] for run in runs.values())
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + f" | {alone} of {total} |")
    if found["costs"]:
        lines += ["", "| pass | " + " | ".join(COSTS) + " |", "|---" * (len(COSTS) + 1) + "|"]
    for kind, times in found["costs"].items():
        lines.append(f"| {kind} | " + " | ".join(f"{times[name]['relative']:.1f}×" for name in COSTS) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pursuit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="pursuit")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200, help="test images to attack")
    parser.add_argument("--only", choices=("accuracy", "cost"), help="run only one of the two measurements")
    parser.add_argument("--out", type=Path, help="write JSON there")
    options = parser.parse_args(arguments)
    recipe = load_params().recipes[options.recipe]
    data = recipe.data
    splits = split(load_dataset(data.name, **data.options), data.validation, data.split_seed, data.train)
    found: dict[str, Any] = {
        **describe("cpu", ("torchvision",)),
        "seed": 0,
        "recipe": recipe.model_dump(mode="json"),
        "epsilon": recipe.threat.epsilon,
        "attacks": [*recipe.attack.attacks],
        "costs": costs(recipe, splits, 0) if options.only != "accuracy" else {},
        "models": {},
    }
    for seed in range(options.seeds if options.only != "cost" else 0):
        for method in recipe.methods:
            say(f"{method}, seed {seed}")
            model = fit(recipe, method, splits, seed)
            figures = found["models"].setdefault(method, {})
            figures[str(seed)] = measure(recipe, model, splits, options.samples, seed)
            save(found, options.out)
    save(found, options.out)
    print(report(found))


def save(found: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
