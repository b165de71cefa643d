"""The comparison of methods as tables: what a cell holds, how it reads, and which method is best."""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from trl.report.results import Accuracy, ModelResults, Results

NOTHING = "–"  # stands for a value that does not exist


@dataclass(frozen=True)
class Cell:
    """One method's values of one measure, one per seed (NaN: undefined), and the 95 % interval if there is one seed."""

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
    """One measure of all methods: shares are shown in percent with one decimal, other figures with three decimals."""

    title: str
    cells: Mapping[str, Cell]
    percent: bool = True
    higher_is_better: bool = True

    def show(self, value: float) -> str:
        """One number as text."""
        if math.isnan(value):
            return NOTHING
        return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"

    def text(self, method: str) -> str:
        """The cell of `method`: the mean, with its standard deviation if there are several seeds."""
        cell = self.cells[method]
        return self.show(cell.mean) + ("" if math.isnan(cell.std) else f" ± {self.show(cell.std)}")

    def uncertainty(self, method: str) -> str:
        """`± std` over several seeds, or `low–high` (95 %) with one; empty where there is neither."""
        cell = self.cells[method]
        if not math.isnan(cell.std):
            return f"± {self.show(cell.std)}"
        return "" if math.isnan(cell.low) else f"{self.show(cell.low)}–{self.show(cell.high)}"

    def best(self) -> set[str]:
        """The methods that show the best mean; none if all show the same."""
        means = {method: cell.mean for method, cell in self.cells.items() if not math.isnan(cell.mean)}
        if len({self.show(mean) for mean in means.values()}) < 2:
            return set()
        best = self.show((max if self.higher_is_better else min)(means.values()))
        return {method for method, mean in means.items() if self.show(mean) == best}


def comparison(results: Results) -> list[Column]:
    """Accuracy on natural images, under each attack and under the worst of them, then AUC of detection per attack."""

    def robust(attack: str) -> Column:
        return _accuracy_column(results, attack, lambda model: model.attack.robust[attack])

    return [
        _accuracy_column(results, "clean", lambda model: model.attack.clean),
        *(robust(attack) for attack in results.attacks),
        *(_auc_column(results, f"AUC {attack}", "auc", attack) for attack in results.detection_attacks),
    ]


def detection(results: Results) -> list[Column]:
    """AUC of natural against all, successful and failed adversarial images, per attack."""
    subsets = {"all": "auc", "successful": "auc_successful", "failed": "auc_failed"}
    return [
        _auc_column(results, f"{attack}, {subset}", field, attack)
        for attack in results.detection_attacks
        for subset, field in subsets.items()
    ]


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
    return "\n".join([*lines, "", f"Percent; {describe_seeds(results)}; epsilon {show_epsilon(results.epsilon)}."])


def describe_seeds(results: Results) -> str:
    """What one number of a table stands for."""
    if len(results.seeds) == 1:
        return f"one model per method (seed {results.seeds[0]})"
    return f"mean ± standard deviation over seeds {', '.join(map(str, results.seeds))}"


def show_epsilon(epsilon: float) -> str:
    """As the field writes it: 0.3, but 8/255 where the decimals would not end soon."""
    short, steps = f"{epsilon:.4g}", round(255 * epsilon)
    return f"{steps}/255" if float(short) != epsilon and math.isclose(steps / 255, epsilon, rel_tol=1e-6) else short


def write_csv(results: Results, path: Path) -> None:
    """Write the comparison in percent: a row per method, `<column>` (mean) and `<column>_std` (empty for one seed)."""
    columns = comparison(results)
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", *(name for c in columns for name in (c.title, f"{c.title}_std"))])
        for method in results.methods:
            figures = (figure for c in columns for figure in (c.cells[method].mean, c.cells[method].std))
            writer.writerow([method, *("" if math.isnan(f) else f"{100 * f:.4f}" for f in figures)])


def _accuracy_column(results: Results, title: str, get: Callable[[ModelResults], Accuracy]) -> Column:
    def cell(method: str) -> Cell:
        figures = [get(model) for model in results.of(method)]
        interval = (figures[0].low, figures[0].high) if len(figures) == 1 else ()
        return Cell(tuple(figure.accuracy for figure in figures), *interval)

    return Column(title, {method: cell(method) for method in results.methods})


def _auc_column(results: Results, title: str, field: str, attack: str) -> Column:
    return _column(results, title, lambda model: getattr(model.detect, field).get(attack, math.nan))


def _column(
    results: Results,
    title: str,
    get: Callable[[ModelResults], float],
    percent: bool = True,
    higher_is_better: bool = True,
) -> Column:
    cells = {method: Cell(tuple(get(model) for model in results.of(method))) for method in results.methods}
    return Column(title, cells, percent, higher_is_better)
