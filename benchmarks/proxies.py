"""Train on few real images with and without proxies: clean and robust accuracy, and each proxy's ARC.

    python -m benchmarks.proxies [--recipe NAME] [--seeds N …] [--only accuracy|arc] [--out FILE.json]

Trains every method of a recipe of params.yaml, on the samples of the proxy that it names, for the same number of steps;
a proxy is fitted and sampled, and a discriminator trained, with the model's seed. `--out` is written after each model.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe, headline
from trl.attacks import build_attack, build_attack_at
from trl.common.progress import say
from trl.common.seeds import derive_seed
from trl.config import Recipe, load_params
from trl.data import ImageSet, Splits, TrainingData, load_dataset, split
from trl.evaluation import evaluate
from trl.models import build_model
from trl.objectives import build_mixed, build_objective
from trl.objectives.base import Setting
from trl.proxies import build_proxy
from trl.proxies.arc import discriminate
from trl.threat import build_threat
from trl.training import train

ATTACKS = ("pgd", "autoattack")  # of the recipe's, the strongest


def sample(recipe: Recipe, name: str, splits: Splits, seed: int) -> ImageSet:
    """The samples of a proxy, as the stage `proxy` draws them."""
    spec = recipe.proxies[name]
    parts = list(build_proxy(spec.name, splits.train, len(splits.classes), seed, **spec.options)(spec.count))
    return ImageSet(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def build(recipe: Recipe, splits: Splits, classes: int) -> nn.Module:
    return build_model(recipe.model.name, classes, splits.train.shape, **recipe.model.options)


def fit(recipe: Recipe, method: str, splits: Splits, proxies: ImageSet | None, seed: int) -> nn.Module:
    """The model of the best epoch, as the stage `train` makes it."""
    torch.manual_seed(derive_seed(seed, "weights"))
    spec, config, model = recipe.methods[method], recipe.train, build(recipe, splits, len(splits.classes))
    threat = build_threat(**recipe.threat.model_dump())
    setting = Setting(TrainingData(splits.train, "cpu"), threat, config.label_smoothing, seed, model.head.in_features)
    if spec.proxy and proxies:
        size, data = spec.proxy.batch * config.batch_size, TrainingData(proxies, "cpu")
        objective = build_mixed(spec.name, setting, data, size, gamma=spec.proxy.gamma, **spec.options)
    else:
        objective = build_objective(spec.name, setting, **spec.options)
    validation = config.validation.attack
    outcome = train(
        model,
        objective,
        setting,
        partial(build_attack_at, name=config.attack.name, threat=threat, **config.attack.options),
        splits.validation,
        build_attack(validation.name, threat, **validation.options),
        config,
    )
    model.load_state_dict(outcome.state)
    return model


def measure(recipe: Recipe, model: nn.Module, splits: Splits, seed: int) -> dict[str, Any]:
    """Accuracies on all test images."""
    threat, given = build_threat(**recipe.threat.model_dump()), recipe.attack.attacks
    attacks = {name: build_attack(given[name].name, threat, **given[name].options) for name in ATTACKS}
    found = evaluate(model, splits.test.images, splits.test.labels, attacks, threat, seed=seed)
    figures = {name: float(flags.float().mean()) for name, flags in found.correct.items()}
    signs = [sign.name for sign in found.signs]
    return figures | {"worst": float(found.worst.float().mean()), "images": len(splits.test), "signs": signs}


def arc(recipe: Recipe, proxies: ImageSet, splits: Splits, seed: int) -> dict[str, Any]:
    """The robust discrimination curve, on validation images, and the area under it."""
    threat = build_threat(**recipe.threat.model_dump())
    network = partial(build, recipe, splits, 2)
    found = discriminate(proxies, splits.train, splits.validation, network, threat, recipe.train, seed=seed)
    return {"arc": found.area, "epsilons": found.epsilons, "accuracy": found.accuracy}


def spread(values: list[float], digits: int = 1) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def report(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [headline(found), "", f"{found['norm']} {found['epsilon']}, accuracy in percent", ""]
    lines += ["| method | seeds | clean | worst case | ARC |", "|---|---|---|---|---|"]
    for method, runs in found["models"].items():
        cells = [spread([100 * run[name] for run in runs.values()]) for name in ("clean", "worst")]
        mix = found["recipe"]["methods"][method].get("proxy")
        arcs = [run["arc"] for run in found["proxies"].get(mix["from"], {}).values()] if mix else []
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + f" | {spread(arcs, 4) if arcs else '–'} |")
    if not found["models"]:
        lines += [
            f"| {name} | {len(runs)} | – | – | {spread([run['arc'] for run in runs.values()], 4)} |"
            for name, runs in found["proxies"].items()
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proxies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits_proxies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("accuracy", "arc"), help="run only one of the two measurements")
    parser.add_argument("--out", type=Path, help="write JSON there")
    options = parser.parse_args(arguments)
    recipe = load_params().recipes[options.recipe]
    data = recipe.data
    splits = split(load_dataset(data.name, **data.options), data.validation, data.split_seed, data.train)
    found: dict[str, Any] = {
        **describe("cpu", ("torchvision", "numpy", "scikit-learn")),
        "seed": ", ".join(map(str, options.seeds)),
        "recipe": recipe.model_dump(mode="json"),
        "norm": recipe.threat.norm,
        "epsilon": recipe.threat.epsilon,
        "proxies": {},
        "models": {},
    }
    for seed in options.seeds:
        samples = {name: sample(recipe, name, splits, seed) for name in recipe.proxies}
        for name, proxies in samples.items() if options.only != "accuracy" else ():
            say(f"ARC of {name}, seed {seed}")
            found["proxies"].setdefault(name, {})[str(seed)] = arc(recipe, proxies, splits, seed)
            save(found, options.out)
        for method, spec in recipe.methods.items() if options.only != "arc" else ():
            say(f"{method}, seed {seed}")
            model = fit(recipe, method, splits, samples[spec.proxy.source] if spec.proxy else None, seed)
            found["models"].setdefault(method, {})[str(seed)] = measure(recipe, model, splits, seed)
            save(found, options.out)
    print(report(found))


def save(found: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
