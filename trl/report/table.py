"""The comparison of methods as tables: what a cell holds, how it reads, and which method is best."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from trl.results import (
    ADAPTIVE,
    WORST,
    Accuracy,
    CertifyResult,
    DetectorFigures,
    Figure,
    ModelResults,
    Results,
    Subsets,
)

NOTHING = "–"  # stands for a value that does not exist

Estimate = Accuracy | Figure | float
"""A figure of one model, with or without an interval; NaN if it does not exist."""


@dataclass(frozen=True)
class Cell:
    """Values of one measure, one per seed (NaN: undefined), and the 95 % interval if there is one seed."""

    values: tuple[float, ...]
    low: float = math.nan
    high: float = math.nan

    @property
    def mean(self) -> float:
        """Mean over the seeds for which the measure is defined; NaN if there is none."""
        defined = self._defined()
        return fmean(defined) if defined else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n - 1 in the denominator); NaN for fewer than two."""
        defined = self._defined()
        return stdev(defined) if len(defined) > 1 else math.nan

    def _defined(self) -> list[float]:
        return [value for value in self.values if not math.isnan(value)]


@dataclass(frozen=True)
class Column:
    """One measure of all rows (methods, or detectors): shares in percent with one decimal, others with three."""

    title: str
    cells: Mapping[str, Cell]
    percent: bool = True
    higher_is_better: bool | None = True  # None: neither is

    def show(self, value: float) -> str:
        """One number as text."""
        if math.isnan(value):
            return NOTHING
        return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"

    def text(self, row: str) -> str:
        """The cell of `row`: the mean, with its standard deviation if there are several seeds."""
        cell = self.cells[row]
        return self.show(cell.mean) + ("" if math.isnan(cell.std) else f" ± {self.show(cell.std)}")

    def uncertainty(self, row: str) -> str:
        """`± std` over several seeds, or `low–high` (95 %) with one; empty where there is neither."""
        cell = self.cells[row]
        if not math.isnan(cell.std):
            return f"± {self.show(cell.std)}"
        return "" if math.isnan(cell.low) else f"{self.show(cell.low)}–{self.show(cell.high)}"

    def best(self) -> set[str]:
        """The rows that show the best mean; none if all show the same."""
        means = {row: cell.mean for row, cell in self.cells.items() if not math.isnan(cell.mean)}
        if self.higher_is_better is None or len({self.show(mean) for mean in means.values()}) < 2:
            return set()
        best = self.show((max if self.higher_is_better else min)(means.values()))
        return {row for row, mean in means.items() if self.show(mean) == best}


def comparison(results: Results) -> list[Column]:
    """Accuracy on natural images, under each attack and the worst of them, under further threats; then of the deployed
    detector its AUC per static attack and under the adaptive ones, and the accuracy under all attacks of a classifier
    that rejects.
    """

    def robust(attack: str) -> Column:
        return _column(results, attack, lambda model: model.attack.robust[attack])

    def further(threat: str) -> Column:
        return _column(results, f"{threat} worst", lambda model: model.attack.threats[threat].robust[WORST])

    def auc(attack: str) -> Column:
        return _column(results, f"AUC {attack}", lambda model: _subsets(model.detect.deployed, attack).all.auc)

    return [
        _column(results, "clean", lambda model: model.attack.clean),
        *map(robust, results.attacks),
        *map(further, results.threats),
        *([_column(results, "union", _union)] if results.threats else []),
        *map(auc, [*results.detection_attacks, ADAPTIVE]),
        _column(results, "rejecting", lambda model: model.detect.deployed.rejection.worst),
    ]


def detection(results: Results) -> dict[str, list[Column]]:
    """By attack: how well the deployed detector tells its images from natural ones."""

    def column(title: str, attack: str, subset: str, figure: str, higher_is_better: bool = True) -> Column:
        def get(model: ModelResults) -> Estimate:
            return _figure(_subsets(model.detect.deployed, attack), subset, figure)

        return _column(results, title, get, higher_is_better=higher_is_better)

    return {
        attack: [
            *(column(f"AUC, {subset}", attack, subset, "auc") for subset in ("all", "successful", "failed")),
            column("AUPR", attack, "all", "aupr"),
            column("false alarms at 95 % found (lower is better)", attack, "all", "fpr95", higher_is_better=False),
            column("found at 1 % false alarms", attack, "all", "tpr01"),
            column("found at 5 % false alarms", attack, "all", "tpr05"),
        ]
        for attack in [*results.detection_attacks, ADAPTIVE]
    }


def detectors(results: Results) -> dict[str, list[Column]]:
    """By method: every detector against the first static attack and against all that know it, alone and rejecting."""
    static, aim = results.detection_attacks[0], results.models[0].detect.false_alarms
    figures: dict[str, Callable[[DetectorFigures], Estimate]] = {
        f"AUC {static}": lambda detector: detector.static[static].all.auc,
        "AUC adaptive": lambda detector: detector.adaptive.all.auc,
        "AUC adaptive, successful": lambda detector: _figure(detector.adaptive, "successful", "auc"),
        "rejecting, clean": lambda detector: detector.rejection.clean,
        f"rejecting, {static}": lambda detector: detector.rejection.static[static],
        "rejecting": lambda detector: detector.rejection.worst,
        f"false alarms (aim: {100 * aim:g} %)": lambda detector: detector.false_alarms,
    }

    def column(method: str, title: str, get: Callable[[DetectorFigures], Estimate]) -> Column:
        models = results.of(method)
        cells = {name: _cell(get(model.detect.detectors[name]) for model in models) for name in results.detectors}
        return Column(title, cells, higher_is_better=None if "alarms" in title else True)

    return {method: [column(method, title, get) for title, get in figures.items()] for method in results.methods}


def representation(results: Results) -> list[Column]:
    """How far adversarial embeddings move (r, r'), and kNN accuracy on embeddings."""
    return [
        _column(results, "r (higher is better)", lambda m: m.detect.representation.r, percent=False),
        _column(
            results,
            "r′ (lower is better)",
            lambda m: m.detect.representation.r_prime,
            percent=False,
            higher_is_better=False,
        ),
        _column(results, "kNN natural", lambda m: m.detect.knn.natural),
        _column(results, "kNN adversarial", lambda m: m.detect.knn.adversarial),
    ]


def certificates(results: Results) -> list[Column]:
    """Of the certified methods: accuracy certified up to each radius, share of abstentions, and mean radius."""

    def column(title: str, get: Callable[[ModelResults], Estimate], **kind: Any) -> Column:
        return Column(title, {method: _cell(map(get, results.of(method))) for method in results.certified}, **kind)

    def at(radius: float) -> Column:
        def get(model: ModelResults) -> Estimate:
            point = next(point for point in model.certified if point.radius == radius)
            return Figure(value=point.accuracy, low=point.low, high=point.high)

        return column(f"r = {radius:g}", get)

    def smoothed(model: ModelResults) -> CertifyResult:
        assert model.certify is not None
        return model.certify

    first = results.of(results.certified[0])[0] if results.certified else None
    return [
        *(at(point.radius) for point in (first.certified if first else ())),
        column("abstained (lower is better)", lambda model: smoothed(model).abstained, higher_is_better=False),
        column("mean radius", lambda model: smoothed(model).mean_radius, percent=False),
    ]


def text_table(results: Results) -> str:
    """The comparison for a terminal: aligned columns, a row per method, and a line that says what the numbers are."""
    columns = comparison(results)
    header = ["method", *(column.title for column in columns)]
    rows = [[method, *(column.text(method) for column in columns)] for method in results.methods]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [header, ["─" * width for width in widths], *rows]
    ]
    return "\n".join([*lines, "", _describe(results)])


def markdown_table(results: Results) -> str:
    """The comparison for a page that renders Markdown, the best of each column in bold; `text_table` says the same."""
    columns = comparison(results)
    best = [column.best() for column in columns]
    cells = [
        [f"**{c.text(m)}**" if m in winners else c.text(m) for c, winners in zip(columns, best, strict=True)]
        for m in results.methods
    ]
    rows = [["method", *(column.title for column in columns)], ["---", *("---:" for _ in columns)]]
    rows += [[method, *row] for method, row in zip(results.methods, cells, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", _describe(results)])


def describe_seeds(results: Results) -> str:
    """What one number of a table stands for."""
    if len(results.seeds) == 1:
        return f"one model per method (seed {results.seeds[0]})"
    return f"mean ± standard deviation over seeds {', '.join(map(str, results.seeds))}"


def _describe(results: Results) -> str:
    return f"Percent; {describe_seeds(results)}; epsilon {show_epsilon(results.epsilon)}."


def show_epsilon(epsilon: float) -> str:
    """As the field writes it: 0.3, but 8/255 where the decimals would not end soon."""
    short, steps = f"{epsilon:.4g}", round(255 * epsilon)
    return f"{steps}/255" if float(short) != epsilon and math.isclose(steps / 255, epsilon, rel_tol=1e-6) else short


def write_csv(results: Results, path: Path) -> None:
    """Write the comparison in percent: a row per method and measure.

    `mean` and `std` are over seeds; with one seed, `std` is empty and `low` and `high` are the 95 % interval.
    """
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "measure", "mean", "std", "low", "high"])
        for method in results.methods:
            for column in comparison(results):
                cell = column.cells[method]
                figures = (cell.mean, cell.std, cell.low, cell.high)
                writer.writerow([method, column.title, *("" if math.isnan(f) else f"{100 * f:.4f}" for f in figures)])


def _column(
    results: Results,
    title: str,
    get: Callable[[ModelResults], Estimate],
    percent: bool = True,
    higher_is_better: bool = True,
) -> Column:
    cells = {method: _cell(map(get, results.of(method))) for method in results.methods}
    return Column(title, cells, percent, higher_is_better)


def _cell(estimates: Iterable[Estimate]) -> Cell:
    first, *more = estimates
    if not more and not isinstance(first, float):
        return Cell((first.value,), first.low, first.high)
    return Cell(tuple(each if isinstance(each, float) else each.value for each in [first, *more]))


def _union(model: ModelResults) -> Estimate:
    return model.attack.union or math.nan


def _subsets(detector: DetectorFigures, attack: str) -> Subsets:
    return detector.adaptive if attack == ADAPTIVE else detector.static[attack]


def _figure(subsets: Subsets, subset: str, name: str) -> Estimate:
    figures = getattr(subsets, subset)
    found: Estimate = math.nan if figures is None else getattr(figures, name)
    return found
