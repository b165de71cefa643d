"""The comparison as figures. Matplotlib is imported when a figure is drawn, and its pyplot state is never touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trl.report.table import Cell, comparison, detectors, show_epsilon
from trl.report.together import ensemble_shares
from trl.results import ADAPTIVE, ModelResults, Results, ScoreBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
WIDTH = 10.0  # inches, of every figure

# Colours told apart by colour-blind readers: Okabe and Ito for methods, Tol's "muted" for classes.
METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
METHOD_LINES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
METHOD_MARKERS = "osD^vPX*"
CLASS_COLOURS = (
    *("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#888888"),
)

REFERENCE: Mapping[str, Any] = {"color": "#888888", "linestyle": (0, (2, 2)), "linewidth": 1.2, "zorder": 1}

NATURAL, NEUTRAL = "#bcbcbc", "#333333"  # natural images; what a legend says of every method
FAINT = "50"  # appended to a colour: its opacity

TRIPLET_COLUMNS = {"active", "positive_distance", "negative_distance"}

Series = tuple[Sequence[float], Sequence[float]]
Point = tuple[float, float, float, float]  # x, a share, and its interval


def robust_accuracy_vs_epsilon(results: Results) -> Figure:
    """Accuracy (%) against epsilon, a panel per attack of curve.csv, with the threat's epsilon marked."""
    attacks = list(dict.fromkeys(point.attack for point in results.models[0].curve))
    figure, panels = _panels(len(attacks), columns=2, height=4.6)
    for axes, attack in zip(panels, attacks, strict=True):
        for method in results.methods:
            curves = [
                [(p.epsilon, p.accuracy, p.low, p.high) for p in model.curve if p.attack == attack]
                for model in results.of(method)
            ]
            _shares(axes, results, method, curves)
        axes.axvline(results.epsilon, **REFERENCE)
        title = f"Accuracy under {attack} (dotted: threat ε = {show_epsilon(results.epsilon)})"
        _dress(axes, title, "perturbation size ε (pixel values in [0, 1])", "accuracy (%)")
        axes.set_ylim(-2, 102)
        axes.set_xlim(left=0)
    _method_legend(figure, results)
    return figure


def certified_accuracy(results: Results) -> Figure | None:
    """Certified accuracy (%) against the ℓ2 radius; None if no model was certified."""
    if not results.certified:
        return None
    figure, [axes] = _panels(1, columns=1, height=4.6)
    for method in results.certified:
        curves = [[(p.radius, p.accuracy, p.low, p.high) for p in model.certified] for model in results.of(method)]
        _shares(axes, results, method, curves)
    _dress(axes, "Certified accuracy", "ℓ2 radius r (pixel values in [0, 1])", "certified accuracy (%)")
    axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    _method_legend(figure, results, results.certified)
    return figure


def attack_accuracies(results: Results) -> Figure:
    """Bars of accuracy (%) on natural images, under each attack and under the worst of them."""
    columns = comparison(results)[: len(results.attacks) + 1]
    figure, [axes] = _panels(1, columns=1, height=4.2)
    width = 0.8 / len(results.methods)
    for i, method in enumerate(results.methods):
        cells = [column.cells[method] for column in columns]
        axes.bar(
            [x - 0.4 + (i + 0.5) * width for x in range(len(columns))],
            [100 * cell.mean for cell in cells],
            0.92 * width,
            yerr=100 * np.array([_error(cell) for cell in cells]).T,
            color=_colour(results, method),
            label=method,
            error_kw={"elinewidth": 1.2, "capsize": 2, "ecolor": NEUTRAL},
        )
    _dress(axes, "Accuracy under each attack", "", "accuracy (%)")
    axes.set_xticks(range(len(columns)), [column.title for column in columns], rotation=30 * (len(columns) > 9))
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 102)
    figure.legend(loc="outside lower center", ncols=8, frameon=False)
    return figure


def roc_curves(results: Results) -> Figure:
    """The deployed detector: true against false positive rate over all adversarial images, a panel per attack."""
    attacks, detector = [*results.detection_attacks, ADAPTIVE], results.detectors[0]
    columns = _even(len(attacks))
    figure, panels = _panels(len(attacks), columns, height=0.92 * WIDTH / columns)
    grid = np.linspace(0, 1, 401)

    def curve(model: ModelResults, attack: str) -> Any:
        wanted = (detector, attack, "all")
        return np.array(sorted((p.fpr, p.tpr) for p in model.roc if (p.detector, p.attack, p.subset) == wanted))

    for axes, attack in zip(panels, attacks, strict=True):
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for method in results.methods:
            curves = [curve(model, attack) for model in results.of(method)]
            sampled = [np.interp(grid, *points.T) for points in curves if points.size]
            if sampled:
                x, mean, std = _across([(grid.tolist(), tpr.tolist()) for tpr in sampled])
                _line(axes, results, method, [0, *x], [0, *mean], [0, *(mean - std)], [0, *(mean + std)])
        _dress(axes, f"{detector}, {_knowing(attack)}", "false positive rate", "true positive rate")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _method_legend(figure, results)
    return figure


def score_histograms(results: Results) -> Figure:
    """Densities of the deployed detector's scores, and its threshold; a panel per method, of its first seed."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    detector, static = results.detectors[0], results.detection_attacks[0]
    models = [results.of(method)[0] for method in results.methods]
    figure, panels = _panels(len(models), columns=2, height=3.2)
    for axes, model in zip(panels, models, strict=True):
        colour, threshold = _colour(results, model.method), model.detect.deployed.threshold
        bins = {
            images: [each for each in model.scores if (each.detector, each.images) == (detector, images)]
            for images in ("natural", static, ADAPTIVE)
        }
        axes.stairs(*_density(bins["natural"]), fill=True, color=NATURAL)
        axes.stairs(*_density(bins[static]), fill=True, facecolor=f"{colour}{FAINT}", edgecolor=colour, linewidth=1.2)
        axes.stairs(*_density(bins[ADAPTIVE]), color=colour, linewidth=1.8, linestyle="--")
        axes.axvline(threshold, **REFERENCE)
        low, high = bins["natural"][0].low, bins["natural"][-1].high
        _dress(axes, f"{model.method} (seed {model.seed})", f"score of {detector} (its own scale)", "density")
        axes.set(xlim=(min(low, threshold), max(high, threshold)), yticks=[])
    handles = [
        Patch(color=NATURAL),
        Patch(facecolor=f"{NEUTRAL}{FAINT}", edgecolor=NEUTRAL),
        Line2D([], [], color=NEUTRAL, linewidth=1.8, linestyle="--"),
        Line2D([], [], **REFERENCE),
    ]
    names = ["natural", _knowing(static), ADAPTIVE, "threshold"]
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=3, frameon=False)
    return figure


def detection_vs_epsilon(results: Results) -> Figure:
    """The deployed detector's AUC (%) against epsilon: static attack solid, adaptive dashed."""
    from matplotlib.lines import Line2D

    detect = results.models[0].detect
    attacks = list(dict.fromkeys(point.attack for point in results.models[0].detection))
    styles: list[Literal["-", "--"]] = ["--" if attack == ADAPTIVE else "-" for attack in attacks]
    figure, [axes] = _panels(1, columns=1, height=4.6)
    for attack, style in zip(attacks, styles, strict=True):
        for method in results.methods:
            curves = [
                [(p.epsilon, p.auc, p.low, p.high) for p in model.detection if p.attack == attack]
                for model in results.of(method)
            ]
            _shares(axes, results, method, curves, style)
    axes.axhline(50, **REFERENCE)
    axes.axvline(detect.epsilon, **REFERENCE)
    title = f"AUC of {detect.detector} (dotted: guessing, and ε = {show_epsilon(detect.epsilon)} of the tables)"
    _dress(axes, title, "perturbation size ε (pixel values in [0, 1])", "AUC (%)")
    axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    handles = [Line2D([], [], color=NEUTRAL, linestyle=style) for style in styles]
    axes.legend(handles, [_knowing(attack) for attack in attacks], frameon=False)
    _method_legend(figure, results)
    return figure


def detector_aucs(results: Results) -> Figure:
    """AUC (%) of every detector under the first static attack and under the adaptive ones, a panel per method."""
    from matplotlib.lines import Line2D

    groups, names = detectors(results), results.detectors
    figure, panels = _panels(len(groups), columns=2, height=1.1 + 0.32 * len(names))
    rows = range(len(names))
    for axes, (method, (static, adaptive, *_)) in zip(panels, groups.items(), strict=True):
        colour = _colour(results, method)
        means = [[100 * column.cells[name].mean for name in names] for column in (static, adaptive)]
        axes.hlines(rows, means[0], means[1], color=colour, alpha=0.35, linewidth=3)
        for column, mean, face in zip((static, adaptive), means, ("white", colour), strict=True):
            errors = 100 * np.array([_error(column.cells[name]) for name in names]).T
            axes.errorbar(
                *(mean, rows, None, errors, "o"),
                color=colour,
                markerfacecolor=face,
                markersize=7,
                elinewidth=1.2,
                ecolor=NEUTRAL,
                capsize=2,
            )
        axes.axvline(50, **REFERENCE)
        _dress(axes, method, "AUC (%)", "")
        axes.set_yticks(rows, names)
        axes.set(xlim=(-2, 102), ylim=(len(names) - 0.5, -0.5))
    handles = [
        Line2D([], [], color=NEUTRAL, markerfacecolor=face, marker="o", linestyle="") for face in ("white", NEUTRAL)
    ]
    shown = [_knowing(results.detection_attacks[0]), ADAPTIVE]
    figure.legend(handles, shown, loc="outside lower center", ncols=2, frameon=False)
    return figure


def training_curves(results: Results) -> Figure:
    """Loss, and accuracy (%) on natural and attacked validation images, per epoch."""
    figure, panels = _panels(3, columns=3, height=3.6)
    titles = {"loss": "Training loss", "val_clean": "Validation, natural", "val_robust": "Validation, attacked"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        accuracy = column != "loss"
        for method in results.methods:
            _epochs(axes, results, method, column, scale=100 if accuracy else 1)
        _dress(axes, title, "epoch", "accuracy (%)" if accuracy else "loss (objective's own scale)")
        if accuracy:
            axes.set_ylim(-2, 102)
    _method_legend(figure, results)
    return figure


def triplet_terms(results: Results) -> Figure | None:
    """Active share (%) of the triplets and mean distances to positives and negatives, per epoch; None without any."""
    methods = [m for m in results.methods if all(model.epochs.keys() >= TRIPLET_COLUMNS for model in results.of(m))]
    if not methods:
        return None
    from matplotlib.lines import Line2D

    figure, (active, distances) = _panels(2, columns=2, height=3.8)
    for method in methods:
        _epochs(active, results, method, "active", scale=100)
        _epochs(distances, results, method, "positive_distance", linestyle="-")
        _epochs(distances, results, method, "negative_distance", linestyle="--")
    _dress(active, "Triplets that violate the margin", "epoch", "active triplets (%)")
    active.set_ylim(-2, 102)
    _dress(distances, "Distances of the anchor", "epoch", "distance of embeddings")
    distances.set_ylim(bottom=0)
    distances.legend(
        [Line2D([], [], color=NEUTRAL, linestyle=style) for style in ("-", "--")],
        ["to the positive", "to the negative"],
        frameon=False,
    )
    _method_legend(figure, results, methods)
    return figure


def tsne_maps(results: Results) -> Figure:
    """Embeddings of the first seed's models in the plane, coloured by true class; a panel per method."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    models = [results.of(method)[0] for method in results.methods]
    labels = sorted({point.label for model in models for point in model.tsne})
    many = colormaps["turbo"](np.linspace(0, 1, len(labels)))
    colours = dict(zip(labels, CLASS_COLOURS if len(labels) <= len(CLASS_COLOURS) else many, strict=False))
    kinds = {"natural": (".", 22.0), "adversarial": ("x", 16.0)}

    columns = _even(len(models))
    figure, panels = _panels(len(models), columns=columns, height=WIDTH / columns)
    for axes, model in zip(panels, models, strict=True):
        for kind, (marker, size) in kinds.items():
            points = [point for point in model.tsne if point.kind == kind]
            axes.scatter(
                [p.x for p in points],
                [p.y for p in points],
                s=size,
                c=[colours[p.label] for p in points],
                marker=marker,
                linewidths=0.9 if marker == "x" else 0,
                alpha=0.8,
            )
        _dress(axes, f"{model.method} (seed {model.seed})", "t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
        axes.set(xticks=[], yticks=[])
    shown = [Line2D([], [], color="#555555", linestyle="", marker=m, markersize=s**0.5 + 2) for m, s in kinds.values()]
    names = list(kinds)
    if len(labels) <= len(CLASS_COLOURS):
        shown += [Line2D([], [], color=colours[label], linestyle="", marker="o") for label in labels]
        names += [f"class {label}" for label in labels]
    figure.legend(shown, names, loc="outside lower center", ncols=6, frameon=False)
    return figure


FIGURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "robust_accuracy_vs_epsilon": robust_accuracy_vs_epsilon,
    "certified_accuracy": certified_accuracy,
    "attacks": attack_accuracies,
    "roc": roc_curves,
    "scores": score_histograms,
    "detection_vs_epsilon": detection_vs_epsilon,
    "detectors": detector_aucs,
    "ensembles": ensemble_shares,
    "training_curves": training_curves,
    "triplet": triplet_terms,
    "tsne": tsne_maps,
}


def save_figures(results: Results, folder: Path) -> list[Path]:
    """Write each figure that applies to `<folder>/<name>.png`; the same results give the same bytes."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        if figure := draw(results):
            paths.append(Path(folder) / f"{name}.png")
            figure.savefig(paths[-1], dpi=DPI, metadata={"Software": None})
    return paths


def _panels(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of at most `columns`, each row `height` inches high."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _even(count: int) -> int:
    """Two or three columns, whichever leaves fewer places empty."""
    return 2 if count in (2, 4) else 3


def _dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def _colour(results: Results, method: str) -> str:
    return METHOD_COLOURS[results.methods.index(method) % len(METHOD_COLOURS)]


def _marker(results: Results, method: str) -> str:
    return METHOD_MARKERS[results.methods.index(method) % len(METHOD_MARKERS)]


def _line_style(results: Results, method: str) -> Literal["-", "--", ":"]:
    return METHOD_LINES[results.methods.index(method) // len(METHOD_COLOURS) % len(METHOD_LINES)]


def _line(
    axes: Axes,
    results: Results,
    method: str,
    x: Any,
    mean: Any,
    low: Any,
    high: Any,
    scale: float = 1,
    linestyle: str = "",
) -> None:
    """A method's line with its band, and about ten of its markers."""
    colour = _colour(results, method)
    axes.plot(
        x,
        np.asarray(mean) * scale,
        color=colour,
        linestyle=linestyle or _line_style(results, method),
        linewidth=1.8,
        marker=_marker(results, method),
        markersize=5,
        markevery=max(len(x) // 10, 1),
    )
    axes.fill_between(x, np.asarray(low) * scale, np.asarray(high) * scale, color=colour, alpha=0.15, linewidth=0)


def _knowing(attack: str) -> str:
    """The attack, by what it knows of the detector."""
    return attack if attack == ADAPTIVE else f"static {attack}"


def _shares(axes: Axes, results: Results, method: str, curves: Sequence[Sequence[Point]], linestyle: str = "") -> None:
    """A method's line in percent; its band is the interval of one seed, or the standard deviation over several."""
    x, mean, std = _across([([p[0] for p in curve], [p[1] for p in curve]) for curve in curves])
    low, high = mean - std, mean + std
    if len(curves) == 1:
        bounds = {at: interval for at, _, *interval in curves[0]}
        low, high = np.array([bounds[at] for at in x]).T
    _line(axes, results, method, x, mean, np.clip(low, 0, 1), np.clip(high, 0, 1), 100, linestyle)


def _density(bins: Sequence[ScoreBin]) -> tuple[Any, Any]:
    """Heights, and edges (one more), of a histogram of area 1."""
    edges = np.array([*(each.low for each in bins), bins[-1].high])
    counts = np.array([each.count for each in bins])
    return counts / counts.sum() / np.diff(edges), edges


def _epochs(axes: Axes, results: Results, method: str, column: str, scale: float = 1, linestyle: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    def series(model: ModelResults) -> Series:
        return model.epochs["epoch"], model.epochs[column]

    x, mean, std = _across([series(model) for model in results.of(method)])
    _line(axes, results, method, x, mean, mean - std, mean + std, scale, linestyle)
    axes.set_xlim(0, 1.04 * max(max(model.epochs["epoch"]) for model in results.models))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _across(series: Iterable[Series]) -> tuple[Any, Any, Any]:
    """(x, mean, std) over seeds, at the x where every seed has a value; std is 0 for one seed."""
    values = [{x: y for x, y in zip(xs, ys, strict=True) if not math.isnan(y)} for xs, ys in series]
    common = sorted(set.intersection(*(set(v) for v in values)))
    table = np.array([[v[x] for x in common] for v in values])
    std = table.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(common))
    return np.array(common), table.mean(axis=0), std


def _error(cell: Cell) -> tuple[float, float]:
    """Lengths of the error bar below and above the mean: std over seeds, or the 95 % interval of one seed."""
    if len(cell.values) > 1:
        return cell.std, cell.std
    return max(cell.mean - cell.low, 0), max(cell.high - cell.mean, 0)


def _method_legend(figure: Figure, results: Results, methods: Sequence[str] | None = None) -> None:
    from matplotlib.lines import Line2D

    shown = list(results.methods if methods is None else methods)
    handles = [
        Line2D(
            *([], []),
            color=_colour(results, m),
            linestyle=_line_style(results, m),
            marker=_marker(results, m),
            linewidth=2.5,
        )
        for m in shown
    ]
    figure.legend(handles, shown, loc="outside lower center", ncols=8, handlelength=3, frameon=False)
