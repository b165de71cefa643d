"""The figure of several models attacked together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trl.results import EnsembleResult, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"clean": "#bcbcbc", "average": "#56B4E9", "minmax": "#D55E00"}


def ensemble_shares(results: Results) -> Figure | None:
    """Bars of the share (%) of images that fool all models and each of them, a panel per ensemble; None without any."""
    from trl.report.figures import _dress, _panels

    if not results.ensembles:
        return None
    figure, panels = _panels(len(results.ensembles), columns=1, height=4.0)
    for axes, (name, result) in zip(panels, results.ensembles.items(), strict=True):
        groups = ["all models", *result.methods]
        for i, (kind, colour) in enumerate(KINDS.items()):
            shares = 100 * np.array([_shares(result, kind, group) for group in groups])  # [groups, seeds]
            axes.bar(
                [x + 0.27 * (i - 1) for x in range(len(groups))],
                shares.mean(1),
                0.25,
                yerr=shares.std(1, ddof=1) if shares.shape[1] > 1 else None,
                color=colour,
                label=kind if axes is panels[0] else None,
                error_kw={"elinewidth": 1.2, "capsize": 2},
            )
        weights = [np.mean([found.weights[method] for found in result.seeds.values()]) for method in result.methods]
        labels = [f"{method}\nweight {weight:.2f}" for method, weight in zip(result.methods, weights, strict=True)]
        axes.set_xticks(range(len(groups)), ["all models", *labels])
        _dress(axes, f"Images that fool {name}", "", "share of images (%)")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, 102)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _shares(result: EnsembleResult, kind: str, group: str) -> list[float]:
    """One share per seed."""
    fooled = [getattr(found, kind) for found in result.seeds.values()]
    return [(each.all if group == "all models" else each.each[group]).value for each in fooled]
