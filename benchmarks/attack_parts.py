"""Compare each part of AutoAttack on its own, in every norm, with pyautoattack's: images left, and seconds.

    python -m benchmarks.attack_parts [--quick] [--parts NAME …] [--norms NAME …] [--out FILE.json]

Both use the budgets of version standard, in full precision, on images that the network classifies correctly. If
TRL_RAW_DATA names a folder with mnist/ and models/fast_adversarial_mnist/, two published robust networks are attacked;
otherwise one that is first trained on scikit-learn's digits, in less than a minute. Without pyautoattack
(`pip install -e .[benchmarks]`), only our figures are reported.
"""

import argparse
import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe, headline
from benchmarks.networks import first_images, published, trained_on_digits
from benchmarks.publish import publish
from benchmarks.turns import draw, say
from trl.attacks import build_attack
from trl.nn.device import choose_device
from trl.threat import build_threat

PARTS = {part: part.replace("_", "-") for part in ("apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square")}
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # ours: pyautoattack's
EPSILONS = {  # chosen so that a medium fraction of the images is left
    "fgsm.pth": {"linf": 0.31, "l2": 2.4, "l1": 8.0},
    "pgd_madry.pth": {"linf": 0.31, "l2": 2.6, "l1": 8.0},
    "digits": {"linf": 0.1, "l2": 0.6, "l1": 3.0},
}
BATCH = 250

Network = tuple[str, nn.Module, Tensor, Tensor]  # name, network, correctly classified images, labels
Run = Callable[[Tensor, Tensor], Tensor]  # attacks one batch
Contestant = Callable[[nn.Module, str, float, str, int], Run]  # model, norm, epsilon, part, seed → Run


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    images: int = 200
    seeds: int = 2
    epochs: int = 60


QUICK = Sizes(images=20, seeds=1, epochs=20)


def networks(sizes: Sizes, device: str) -> Iterator[Network]:
    """The networks to attack."""
    found = {name: published(name) for name in EPSILONS}
    if not any(found.values()):
        found["digits"] = trained_on_digits(EPSILONS["digits"]["linf"], sizes.epochs, seed=0)
    for name, pair in found.items():
        if pair:
            model = pair[0].to(device)
            x, y = first_images(pair[1], sizes.images, device)
            right = ~fooled(model, x, y)
            yield name, model, x[right], y[right]


def ours(model: nn.Module, norm: str, epsilon: float, part: str, seed: int) -> Run:
    torch.manual_seed(seed)
    return partial(build_attack("autoattack", build_threat(norm, epsilon), version="custom", parts=(part,)), model)


def theirs(model: nn.Module, norm: str, epsilon: float, part: str, seed: int) -> Run:
    from pyautoattack import AutoAttack

    reference = AutoAttack(model, eps=epsilon, norm=NORMS[norm], seed=seed, device=next(model.parameters()).device)
    reference.attacks_to_run = [PARTS[part]]
    return lambda x, y: reference.run_standard_evaluation(x, y, batch_size=BATCH)[0]


CONTESTANTS: dict[str, Contestant] = {"trl": ours, "pyautoattack": theirs}


def measure(network: Network, norm: str, part: str, seeds: int) -> dict[str, Any]:
    """Images left by each contestant (None: not installed), by seed, and total seconds."""
    name, model, x, y = network
    epsilon = EPSILONS[name][norm]
    row: dict[str, Any] = {"network": name, "norm": norm, "epsilon": epsilon, "part": part, "images": len(x)}
    for contestant, build in CONTESTANTS.items():
        left, seconds = [], 0.0
        for seed in range(seeds):
            try:
                run = build(copy.deepcopy(model), norm, epsilon, part, seed)
            except ImportError:
                break
            start = time.perf_counter()
            x_adv = torch.cat([run(*batch) for batch in zip(x.split(BATCH), y.split(BATCH), strict=True)])
            left.append(int((~fooled(model, x_adv, y)).sum()))
            seconds += time.perf_counter() - start
        row[contestant] = {"left": left, "seconds": seconds} if left else None
        say(f"{name}, {norm} {epsilon}, {part}, {contestant}: " + (f"{left}, {seconds:.1f} s" if left else "absent"))
    return row


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether each image is misclassified: bool [n]."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(BATCH)]) != y


def deficit(row: dict[str, Any]) -> float:
    """How many more images ours leaves, averaged over seeds."""
    return fmean(row["trl"]["left"]) - fmean(row["pyautoattack"]["left"])


def report(found: dict[str, Any]) -> str:
    """The figures as a Markdown table, and where ours falls furthest behind."""
    lines = [headline(found), "", "Images left by one part of AutoAttack alone, for each seed", ""]
    lines += [
        "| network | part | of | left, trl | left, pyautoattack | seconds, theirs / ours |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["parts"]:
        mine, reference = row["trl"], row["pyautoattack"]
        cells = [row["network"], f"{row['norm']} {row['epsilon']:g} {row['part']}", str(row["images"])]
        cells += ["not installed" if one is None else ", ".join(map(str, one["left"])) for one in (mine, reference)]
        cells += [f"{reference['seconds'] / mine['seconds']:.2f}×" if reference else ""]
        lines.append(f"| {' | '.join(cells)} |")
    if compared := [row for row in found["parts"] if row["pyautoattack"]]:
        worst = max(compared, key=deficit)
        where = f"{worst['part']} in {worst['norm']} on {worst['network']}"
        lines += ["", f"Largest deficit: {deficit(worst):+.1f} images of {worst['images']}, {where}"]
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Speed relative to pyautoattack, one panel per network."""
    panels: dict[str, dict[str, float]] = {}
    for row in found["parts"]:
        if reference := row["pyautoattack"]:
            bars = panels.setdefault(f"{row['network']}: speed relative to pyautoattack", {})
            bars[f"{row['norm']} {row['part']}"] = reference["seconds"] / row["trl"]["seconds"]
    if panels:
        draw(panels, found["machine"]["gpu"] or found["machine"]["cpu"], path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attack_parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="take a minute or two instead of half an hour; less exact")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=[*NORMS], metavar="NORM")
    parser.add_argument(
        "--images", type=int, help=f"number of test images (default {Sizes.images}, quick {QUICK.images})"
    )
    parser.add_argument("--device", help="cpu, cuda, … (default: TRL_DEVICE, or the GPU if there is one)")
    parser.add_argument("--out", type=Path, help="write JSON there, and a plot of the speed next to it")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, images=options.images or sizes.images)
    device = choose_device(options.device)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    rows = [
        measure(network, norm, part, sizes.seeds)
        for network in networks(sizes, device)
        for norm in options.norms
        for part in options.parts
    ]
    seeds = f"0 to {sizes.seeds - 1}"
    publish({**describe(device, ["pyautoattack"]), "seed": seeds, "parts": rows}, report, plot, options.out)


if __name__ == "__main__":
    main()
