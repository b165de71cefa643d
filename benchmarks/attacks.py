"""Compare attacks with torchattacks, foolbox, ART and pyautoattack: same model, images and machine, in one run.

    python -m benchmarks.attacks [--quick] [--out FILE.json]

1. Gradient evaluations per second of plain PGD. Contestants take turns, and each ratio is the median over turns, so
   that other load on the machine affects all of them equally.
2. Standard AutoAttack: robust accuracy and wall time after each of its four attacks. If TRL_RAW_DATA names a folder
   with mnist/ and models/fast_adversarial_mnist/, a published robust network is attacked; otherwise one that is first
   trained on scikit-learn's digits, in less than a minute.

Libraries that are not installed are skipped; `pip install -e .[benchmarks]` installs all of them.
"""

import argparse
import copy
import logging
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe, headline
from benchmarks.networks import first_images, published, trained_on_digits
from benchmarks.publish import publish
from benchmarks.turns import draw, say, take_turns, timed, times
from trl.attacks import build_attack, pgd
from trl.evaluation import evaluate
from trl.models import build_model
from trl.nn.device import choose_device
from trl.nn.precision import has_fast_bf16
from trl.threat import Linf

PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack")
PARTS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}  # ours: pyautoattack's
EPSILON = 0.1  # for the noise images that speed is measured on

Network = tuple[str, tuple[int, int, int], int]  # name, shape of an image, batch size
Run = Callable[[Tensor, Tensor], object]  # attacks one batch
Contestant = Callable[[nn.Module, tuple[int, int, int], int], Run]  # model, shape of an image, steps → Run


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    networks: tuple[Network, ...] = (
        ("mnist_cnn", (1, 28, 28), 100),
        ("strided_cnn", (1, 28, 28), 100),
        ("resnet18", (3, 32, 32), 50),
    )
    steps: int = 10
    turns: int = 7
    images: int = 500  # for AutoAttack
    batch: int = 250
    epochs: int = 60


QUICK = replace(Sizes(), steps=3, turns=3, images=50, epochs=20)


def ours(model: nn.Module, shape: tuple[int, int, int], steps: int) -> Run:
    return lambda x, y: pgd(model, x, y, Linf(EPSILON), steps=steps, step_size=0.02)


def ours_bf16(model: nn.Module, shape: tuple[int, int, int], steps: int) -> Run:
    def run(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return pgd(model, x, y, Linf(EPSILON), steps=steps, step_size=0.02)

    return run


def with_torchattacks(model: nn.Module, shape: tuple[int, int, int], steps: int) -> Run:
    import torchattacks

    attack: Run = torchattacks.PGD(model, eps=EPSILON, alpha=0.02, steps=steps)
    return attack


def with_foolbox(model: nn.Module, shape: tuple[int, int, int], steps: int) -> Run:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.02, steps=steps)
    return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPSILON)


def with_art(model: nn.Module, shape: tuple[int, int, int], steps: int) -> Run:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    device = "gpu" if next(model.parameters()).is_cuda else "cpu"
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=shape, nb_classes=10, clip_values=(0, 1), device_type=device
    )
    options = {"eps": EPSILON, "eps_step": 0.02, "max_iter": steps, "num_random_init": 1, "verbose": False}

    def run(x: Tensor, y: Tensor) -> object:  # its interface is NumPy arrays
        attack = ProjectedGradientDescent(classifier, batch_size=len(x), **options)
        return attack.generate(x.cpu().numpy(), y.cpu().numpy())

    return run


CONTESTANTS: dict[str, Contestant] = {
    "trl": ours,
    "trl bf16": ours_bf16,
    "torchattacks": with_torchattacks,
    "foolbox": with_foolbox,
    "ART": with_art,
}


def gradient_speed(network: Network, sizes: Sizes, device: str, seed: int) -> dict[str, Any]:
    """Gradient evaluations per second by contestant (None: not installed), and our speed relative to each library."""
    name, shape, batch = network
    torch.manual_seed(seed)
    model = build_model(name, 10, shape).eval().to(device)
    x, y = torch.rand(batch, *shape, device=device), torch.randint(10, (batch,), device=device)
    runs: dict[str, Run] = {}
    for contestant, build in CONTESTANTS.items():
        if contestant != "trl bf16" or has_fast_bf16(device):
            try:
                runs[contestant] = build(copy.deepcopy(model), shape, sizes.steps)
            except ImportError:
                say(f"{contestant}: not installed")
    on_batch = {contestant: partial(run, x, y) for contestant, run in runs.items()}
    seconds = take_turns(on_batch, sizes.turns, partial(timed, device=device), name)
    rates = {c: sizes.steps * batch / median(seconds[c]) if c in runs else None for c in CONTESTANTS}
    mine = [contestant for contestant in runs if contestant.startswith("trl")]
    ratios = {f"{own} / {peer}": times(seconds, own, peer) for own in mine for peer in runs if peer not in mine}
    return {"network": name, "batch": batch, "steps": sizes.steps, "gradients per second": rates, "ratios": ratios}


def autoattack(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, batch: int, seed: int) -> dict[str, Any]:
    """Robust accuracy and seconds after each part, ours and pyautoattack's (None: not installed), and ratios."""
    say(f"AutoAttack on {len(x)} images: ours")
    threat = Linf(epsilon)
    attacks = {"autoattack": build_attack("autoattack", threat)}
    start = time.perf_counter()
    with redirect_stdout(sys.stderr):
        result = evaluate(model, x, y, attacks, threat, batch_size=batch, seed=seed, checks=False)
    mine: dict[str, Any] = {
        "clean": share(result.correct["clean"]),
        "robust": {part: share(result.stages["autoattack"][part]) for part in PARTS},
        "seconds": {part: result.costs[f"autoattack/{part}"].seconds for part in PARTS},
        "total": time.perf_counter() - start,
    }
    say(f"AutoAttack on {len(x)} images: pyautoattack")
    theirs = reference_autoattack(copy.deepcopy(model), x, y, epsilon, batch, seed)
    ratios = {}
    if theirs:
        ratios = {part: theirs["seconds"][part] / max(mine["seconds"][part], 1e-9) for part in PARTS}
        ratios["total"] = theirs["total"] / mine["total"]
    return {"images": len(x), "epsilon": epsilon, "batch": batch, "trl": mine, "pyautoattack": theirs, "ratios": ratios}


def reference_autoattack(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, batch: int, seed: int
) -> dict[str, Any] | None:
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        say("pyautoattack: not installed")
        return None
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    reference = AutoAttack(model, eps=epsilon, norm="Linf", seed=seed, device=x.device)
    start = time.perf_counter()
    with torch.no_grad():
        left = torch.cat([model(part).argmax(1) for part in x.split(batch)]) == y
    figures: dict[str, Any] = {"clean": share(left), "robust": {}, "seconds": {}}
    for part, name in PARTS.items():
        say(f"  {name} on {int(left.sum())} images")
        reference.attacks_to_run = [name]
        before = time.perf_counter()
        if left.any():
            x_adv, _ = reference.run_standard_evaluation(x[left], y[left], batch_size=batch)
            with torch.no_grad():
                left[left.clone()] = torch.cat([model(part).argmax(1) for part in x_adv.split(batch)]) == y[left]
        figures["seconds"][part] = time.perf_counter() - before
        figures["robust"][part] = share(left)
    return {**figures, "total": time.perf_counter() - start}


def robust_network(sizes: Sizes, device: str, seed: int) -> tuple[str, nn.Module, Tensor, Tensor, float]:
    """A robust network: name, module, test images, labels and epsilon."""
    if found := published("fgsm.pth"):
        name, epsilon = "fast_adversarial_mnist/fgsm.pth (Wong, Rice & Kolter 2020)", 0.3
    else:
        name, epsilon = f"strided_cnn, {sizes.epochs} epochs of adversarial training on digits", 0.1
        found = trained_on_digits(epsilon, sizes.epochs, seed)
    model, dataset = found
    return name, model.to(device), *first_images(dataset, sizes.images, device), epsilon


def share(flags: Tensor) -> float:
    return float(flags.float().mean())


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    lines = [headline(found)]
    if found["gradients"]:
        lines += ["", "Gradient evaluations per second of PGD; in brackets, how many times faster ours is", ""]
        lines += ["| | " + " | ".join(CONTESTANTS) + " |", "|---" * (len(CONTESTANTS) + 1) + "|"]
    for row in found["gradients"]:
        cells = []
        for contestant, rate in row["gradients per second"].items():
            times = [f"{row['ratios'][key]:.2f}×" for key in row["ratios"] if key.endswith(f"/ {contestant}")]
            missing = "no fast bf16" if contestant.startswith("trl") else "not installed"
            cells.append(missing if rate is None else f"{rate:.0f}" + (f" ({', '.join(times)})" if times else ""))
        lines.append(f"| {row['network']}, batch {row['batch']} | " + " | ".join(cells) + " |")
    if auto := found["autoattack"]:
        mine, theirs = auto["trl"], auto["pyautoattack"]
        lines += ["", f"AutoAttack, ℓ∞ {auto['epsilon']}, {auto['images']} images, {auto['model']}", ""]
        lines += ["| after | robust, trl | robust, pyautoattack | seconds, trl | seconds, pyautoattack | ratio |"]
        lines += ["|---|---|---|---|---|---|"]
        for part in (*PARTS, "total"):
            last = [*PARTS][-1] if part == "total" else part
            seconds = [figures and figures["seconds"].get(part, figures["total"]) for figures in (mine, theirs)]
            robust = [figures and figures["robust"][last] for figures in (mine, theirs)]
            cells = [*("not installed" if share is None else f"{share:.1%}" for share in robust)]
            cells += ["not installed" if value is None else f"{value:.1f}" for value in seconds]
            cells += [f"{auto['ratios'][part]:.2f}×" if theirs else ""]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """All ratios as bars, with a line at 1."""
    bars = {
        f"PGD, {row['network']}: {key}": value for row in found["gradients"] for key, value in row["ratios"].items()
    }
    if auto := found["autoattack"]:
        bars |= {f"AutoAttack, {part}: trl / pyautoattack": value for part, value in auto["ratios"].items()}
    draw({"speed relative to the other library": bars}, found["machine"]["gpu"] or found["machine"]["cpu"], path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take a minute or two instead of half an hour; less exact")
    parser.add_argument("--only", choices=("gradients", "autoattack"), help="run only one of the two measurements")
    parser.add_argument(
        "--images", type=int, help=f"number of images for AutoAttack (default {Sizes.images}, quick {QUICK.images})"
    )
    parser.add_argument("--device", help="cpu, cuda, … (default: TRL_DEVICE, or the GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write JSON there, and a plot of the ratios next to it")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, images=options.images or sizes.images)
    device = choose_device(options.device)
    logging.getLogger("art").setLevel(logging.WARNING)
    found: dict[str, Any] = {**describe(device, PEERS), "seed": options.seed, "gradients": [], "autoattack": None}
    if options.only != "autoattack":
        found["gradients"] = [gradient_speed(n, sizes, device, options.seed) for n in sizes.networks]
    if options.only != "gradients":
        name, model, x, y, epsilon = robust_network(sizes, device, options.seed)
        measured = autoattack(model, x, y, epsilon, sizes.batch, options.seed)
        found["autoattack"] = {"model": name, **measured}
    publish(found, report, plot, options.out)


if __name__ == "__main__":
    main()
