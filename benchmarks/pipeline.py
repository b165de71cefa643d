"""Profile a run of the pipeline: where its time goes, and how much of it is not mathematics.

    python -m benchmarks.pipeline [--recipe digits] [--quick] [--out FILE.json]

Runs `python -m flows.full` twice in a fresh copy of the project: a full run, then one with nothing left to do. Each
process is timed from within by `benchmarks/profiler`; the product itself has no instrumentation. "Mathematics" is what
train, attack and detect do except for imports, file access, logging to MLflow and checking params.yaml. Interpreters,
imports, DVC, Prefect, MLflow, data preparation and the report do not count as mathematics.

This overhead hardly depends on the recipe, so its share of a longer run is estimated from this run and from the
training times in metrics/.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe, headline
from benchmarks.publish import publish
from benchmarks.tiny import TINY
from benchmarks.turns import say
from trl.nn.device import choose_device
from trl.results import TrainResult

ROOT = Path(__file__).parents[1]
PROFILER = Path(__file__).parent / "profiler"
PACKAGES = ("prefect", "mlflow", "dvc", "matplotlib", "scikit-learn", "scipy")
MATHEMATICS = ("train", "attack", "detect")
STAGES = ("prepare", "train", "attack", "detect", "report", "store", "record")
CAUSES = {  # in the order of tables and plots, with colours
    "mathematics": "#c8ccd4",
    "data": "#8fa3bf",
    "report": "#5f7ba6",
    "interpreter": "#3d3d3d",
    "imports: torch": "#d9623b",
    "imports: mlflow": "#2f9e8f",
    "imports: dvc": "#b08a2e",
    "imports: scipy": "#7d5ba6",
    "imports: matplotlib": "#4f9d4f",
    "imports: prefect": "#a6436b",
    "imports: others": "#e8a48c",
    "DVC": "#e0c36a",
    "Prefect": "#d48ab0",
    "MLflow": "#86cfc5",
    "files": "#9a9a9a",
    "other": "#c2b5a3",
}


def copy_project(folder: Path, recipe: str, quick: bool) -> dict[str, Any]:
    """Copy the project without any results into `folder`; returns its parameters."""
    for name in ("trl", "tasks", "flows"):
        shutil.copytree(ROOT / name, folder / name)  # including compiled bytecode
    for name in ("dvc.yaml", "prefect.toml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    if quick:
        params["methods"] = params["methods"][:1] + params["methods"][-1:]
        params["recipes"][recipe].update(TINY)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    return params


def measured_run(folder: Path, recipe: str, name: str) -> dict[str, Any]:
    """Run the flow in `folder`; returns where its time went (see `account`)."""
    say(f"{name} run of {recipe} …")
    lines = folder / f"{name}.jsonl"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(PROFILER), str(folder)]), "TRL_PROFILE": str(lines)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows.full", "--recipe", recipe],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{done.stdout}\nerror: the run failed, so there is nothing to measure")
    (workers,) = map(int, re.findall(r"up to (\d+) at a time", done.stdout))
    return {"workers": workers} | account([json.loads(line) for line in lines.read_text().splitlines()], wall)


def account(processes: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Sum up the profiles of all `processes` of a run that took `wall` seconds.

    `stages`: per stage, how often it ran, seconds and CPU seconds by cause. `flow`: seconds before the first stage by
    cause, in all stages, in recording after them, and at the end. `cpu`: all CPU seconds by cause; the remainder is
    attributed to Prefect, whose server is not profiled. `not mathematics`: the fraction that is overhead.
    """
    (flow,) = (p for p in processes if program(p) == "flows.full")
    runs = [(name, start, end) for name, start, end in flow["events"] if name != "command"]
    stages: dict[str, dict[str, Any]] = {}
    for process in filter(kind_of, processes):
        kind = kind_of(process)
        figures = stages.setdefault(kind, {"count": 0, "seconds": {}, "cpu": {}})
        figures["count"] += not is_dvc(process)
        for name, unit in (("seconds", "wall"), ("cpu", "cpu")):
            own = ((called(cause, process), value) for cause, value in process[unit].items() if cause != "command")
            add(figures[name], own)
        if not is_dvc(process):  # the remaining CPU seconds are PyTorch's kernel threads
            rest = process["cpu_total"] - sum(process["cpu"].values())
            add(figures["cpu"], [(called("work", process), max(0.0, rest))])
    for outer, name, start, end in [(flow, *run) for run in runs] + [
        (p, p["stage"], start, end) for p in filter(is_dvc, processes) for _, start, end in p["events"]
    ]:  # start and exit of a process, which it cannot measure itself
        inner = [p for p in processes if p is not outer and is_dvc(p) == (outer is flow and "@" in name)]
        seen = sum(p["end"] - p["start"] for p in inner if name in (p["stage"], program(p)))
        add(stages[name.partition("@")[0].rpartition(".")[2]]["seconds"], [("interpreter", end - start - seen)])

    first, last = min(start for _, start, _ in runs), max(end for name, _, end in runs if "@" in name)
    recording = sum(end - start for name, start, end in runs if name == "tasks.record")
    before = {called(cause, flow): value for cause, value in flow["wall"].items() if cause not in ("other", "worker")}
    add(before, [("Prefect", first - flow["start"] - sum(before.values()))])
    cpu: dict[str, float] = {}
    for figures in stages.values():
        add(cpu, figures["cpu"].items())
    total = flow["cpu_total"] + flow["children_cpu"]
    add(cpu, [("Prefect", total - sum(cpu.values()))])
    seconds = sum(value for figures in stages.values() for value in figures["seconds"].values())
    computed = sum(figures["seconds"].get("mathematics", 0.0) for figures in stages.values())
    pieces = [piece for p in processes if kind_of(p) in MATHEMATICS for piece in p["work"]]
    return {
        "seconds": wall,
        "stages": {kind: stages[kind] for kind in STAGES if kind in stages},
        "flow": {
            "before": before,
            "stages": last - first,
            "record": recording,
            "end": wall - (last - flow["start"]) - recording,
        },
        "cpu": cpu,
        "not mathematics": {
            "of the stages' seconds": 1 - computed / seconds,
            "of all CPU seconds": 1 - cpu.get("mathematics", 0.0) / total,
            "of the run's seconds": 1 - covered(pieces) / wall,
        },
    }


def estimate(run: Mapping[str, Any], metrics: Path) -> dict[str, float]:
    """An upper bound on the overhead, in CPU seconds, of a run that trained the models in `metrics`.

    Only training counts as mathematics, as if on one thread, since the results do not record the time of attacks and
    detection.
    """
    training = [TrainResult.read(file.parent).seconds for file in sorted(metrics.glob(f"*/{TrainResult.file}"))]
    rest = run["cpu"]["Prefect"]
    for kind, figures in run["stages"].items():
        other = sum(figures["cpu"].values()) - figures["cpu"].get("mathematics", 0.0)
        rest += other * (len(training) / figures["count"] if kind in MATHEMATICS else 1)
    return {
        "models": len(training),
        "training": sum(training),
        "not mathematics": rest,
        "share at most": rest / (rest + sum(training)),
    }


def add(to: dict[str, float], values: Iterable[tuple[str, float]]) -> None:
    for cause, value in values:
        to[cause] = to.get(cause, 0.0) + value


def program(process: Mapping[str, Any]) -> str:
    """The program of `python -m PROGRAM …`, else ""."""
    argv = process["argv"]
    return argv[argv.index("-m") + 1] if "-m" in argv else ""


def is_dvc(process: Mapping[str, Any]) -> bool:
    return program(process) == "dvc" and bool(process["stage"])


def kind_of(process: Mapping[str, Any]) -> str:
    """The stage that a process belongs to, such as train; "" for the flow itself."""
    alone = {"tasks.record": "record"}
    return str(process["stage"]).partition("@")[0] or alone.get(program(process), "")


def called(cause: str, process: Mapping[str, Any]) -> str:
    """The entry of CAUSES for a cause as named in the profile of a process."""
    if is_dvc(process):
        return "DVC" if cause == "other" else cause
    works = {"prepare": "data", "report": "report", "record": "MLflow"}
    names = {"work": works.get(kind_of(process), "mathematics"), "parameters": "other", "figures": "report"}
    return names.get(cause, cause)


def covered(pieces: Iterable[list[float]]) -> float:
    """The time covered by at least one of the pieces."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(pieces):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def report(found: Mapping[str, Any]) -> str:
    """The figures as a Markdown table, with notes."""
    run, again = found["run"], found["again"]
    stages = {f"{kind} ×{figures['count']}": figures["seconds"] for kind, figures in run["stages"].items()}
    columns = stages | {"before stages": run["flow"]["before"], "CPU, all": run["cpu"]}
    lines = [
        headline({**found, "seed": ", ".join(map(str, found["seeds"]))}),
        "",
        f"Seconds of a run of {found['recipe']} by stage and cause: {run['seconds']:.0f} s with {run['workers']} "
        f"workers, {again['seconds']:.1f} s for a repeated run with nothing to do",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for cause in CAUSES:
        cells = [f"{column[cause]:.1f}" if column.get(cause, 0) >= 0.05 else "" for column in columns.values()]
        if any(cells):
            lines.append(f"| {cause} | " + " | ".join(cells) + " |")
    lines.append("| sum | " + " | ".join(f"{sum(column.values()):.1f}" for column in columns.values()) + " |")
    lines += ["", "Not mathematics: " + ", ".join(f"{v:.1%} {name}" for name, v in run["not mathematics"].items())]
    for recipe, figures in found["estimates"].items():
        lines.append(
            f"Estimated for {recipe}: {figures['not mathematics']:.0f} CPU seconds that are not mathematics, at most "
            f"{figures['share at most']:.1%} of the total with the training of its {figures['models']} models"
        )
    return "\n".join(lines)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Stacked bars: seconds of one run of each stage, and of what precedes the stages."""
    from matplotlib.figure import Figure

    run = found["run"]
    bars = {"before the stages": run["flow"]["before"]}
    for kind, figures in run["stages"].items():
        bars[kind] = {cause: value / figures["count"] for cause, value in figures["seconds"].items()}
    figure = Figure(figsize=(10, 1.5 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for cause, colour in CAUSES.items():
        values = [bar.get(cause, 0.0) for bar in bars.values()]
        if any(value >= 0.05 for value in values):
            axes.barh([*bars], values, left=left, color=colour, label=cause, edgecolor="white", linewidth=0.5)
            left = [a + b for a, b in zip(left, values, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f}", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("seconds of one run of the stage")
    share = run["not mathematics"]["of the stages' seconds"]
    axes.set_title(f"{found['recipe']}: {share:.0%} of the stages' seconds are not mathematics")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits", help="a recipe of params.yaml (default digits)")
    parser.add_argument("--quick", action="store_true", help="train two tiny models, in a minute or two")
    parser.add_argument("--out", type=Path, help="write JSON there, and a plot next to it")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = copy_project(folder, options.recipe, options.quick)
        run, again = (measured_run(folder, options.recipe, title) for title in ("first", "second"))
    known = [folder for folder in sorted((ROOT / "metrics").iterdir()) if folder.name != options.recipe]
    found = {
        **describe(choose_device(), PACKAGES),
        "seeds": params["seeds"],
        "methods": params["methods"],
        "recipe": options.recipe + " (quick)" * options.quick,
        "run": run,
        "again": again,
        "estimates": {folder.name: estimate(run, folder) for folder in known},
    }
    publish(found, report, plot, options.out)


if __name__ == "__main__":
    main()
