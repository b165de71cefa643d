"""Let contestants take turns, so that other load on the machine affects all of them equally."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

Seconds = dict[str, list[float]]  # contestant → seconds of each turn


def take_turns(
    runs: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[Callable[[], object]], float], title: str
) -> Seconds:
    """Measure each contestant's run with `clock` in each turn."""
    seconds: Seconds = {contestant: [] for contestant in runs}
    for turn in range(turns + 1):  # the first turn is a warm-up
        say(f"{title}: turn {turn} of {turns}")
        for contestant, run in runs.items():
            elapsed = clock(run)
            if turn:
                seconds[contestant].append(elapsed)
    return seconds


def times(seconds: Seconds, one: str, other: str) -> float:
    """How many times as long `other` takes as `one`: the median over the turns."""
    return median(b / a for a, b in zip(seconds[one], seconds[other], strict=True))


def timed(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def draw(panels: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Ratios as bars with a line at 1; one panel per kind of ratio."""
    from matplotlib.figure import Figure

    heights = [1 + 0.3 * len(ratios) for ratios in panels.values()]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    rows = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, ratios) in zip(rows, panels.items(), strict=True):
        drawn = axes.barh([*ratios], [*ratios.values()], color="#4878a8")
        axes.bar_label(drawn, fmt="%.2f×", padding=3)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel(label)
        axes.margins(x=0.12)
        axes.invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
