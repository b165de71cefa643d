import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.synthetic_results import (
    EPSILON,
    METHODS,
    SAMPLES,
    write_certificates,
    write_ensemble,
    write_metrics,
)
from trl.report import figures, load_results
from trl.results import Results


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(write_metrics(tmp_path_factory.mktemp("metrics")), METHODS, [0])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(write_metrics(tmp_path_factory.mktemp("metrics"), seeds=(0, 1, 2)), METHODS, [0, 1, 2])


@pytest.fixture(scope="module")
def drawn(one: Results) -> dict:
    """Every figure of one seed, by name."""
    found = {name: draw(one) for name, draw in figures.FIGURES.items()}
    assert [name for name, figure in found.items() if figure is None] == [
        "certified_accuracy",
        "ensembles",
    ]  # none was asked for
    return {name: figure for name, figure in found.items() if figure}


def legend(figure) -> dict[str, str]:
    """Label → colour, of the lines or bars in the figure's legend."""
    found = figure.legends[0]
    return {
        text.get_text(): handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()
        for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)
    }


def lines(axes, colour: str) -> list:
    return [line for line in axes.lines if line.get_color() == colour]


def band(axes, index: int) -> np.ndarray:
    return axes.collections[index].get_paths()[0].vertices


def test_certified_accuracy_is_drawn_for_the_methods_that_have_it(tmp_path: Path) -> None:
    folder = write_certificates(write_metrics(tmp_path), ["um", "tla"])
    figure = figures.certified_accuracy(load_results(folder, METHODS, [0], ["um", "tla"]))
    assert figure is not None
    assert list(legend(figure)) == ["um", "tla"]
    [axes] = figure.axes
    for i, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_xdata(), [0, 0.25, 0.5, 1])
        np.testing.assert_allclose(line.get_ydata(), [95, 85, 75, 55])
        assert band(axes, i)[:, 1].max() <= 100


def test_robust_accuracy_falls_along_the_curves_of_the_file(one: Results, drawn: dict) -> None:
    figure = drawn["robust_accuracy_vs_epsilon"]
    [axes] = figure.axes
    for i, method in enumerate(METHODS):
        curve = one.of(method)[0].curve
        [line] = lines(axes, legend(figure)[method])
        np.testing.assert_allclose(line.get_xdata(), [p.epsilon for p in curve])
        np.testing.assert_allclose(line.get_ydata(), [100 * p.accuracy for p in curve])
        edges = band(axes, i)
        for point in curve:
            at_point = edges[np.isclose(edges[:, 0], point.epsilon), 1]
            assert at_point.min() == pytest.approx(100 * point.low)
            assert at_point.max() == pytest.approx(100 * point.high)
    assert any(list(line.get_xdata()) == [EPSILON, EPSILON] for line in axes.lines)
    assert "%" in axes.get_ylabel()


def test_curves_of_several_seeds_are_their_mean_and_standard_deviation(three: Results) -> None:
    figure = figures.robust_accuracy_vs_epsilon(three)
    [axes] = figure.axes
    accuracies = 100 * np.array([[p.accuracy for p in model.curve] for model in three.of("at")])
    [line] = lines(axes, legend(figure)["at"])
    np.testing.assert_allclose(line.get_ydata(), accuracies.mean(axis=0))
    edges = band(axes, METHODS.index("at"))
    middle = edges[np.isclose(edges[:, 0], EPSILON), 1]
    assert middle.max() - middle.min() == pytest.approx(2 * accuracies[:, 4].std(ddof=1))


def test_bars_stand_for_the_table(three: Results) -> None:
    [axes] = figures.attack_accuracies(three).axes
    heights = [bar.get_height() for bar in axes.patches]
    expected = [
        100 * np.mean([(model.attack.clean if a is None else model.attack.robust[a]).accuracy for model in three.of(m)])
        for m in METHODS
        for a in [None, *three.attacks]
    ]
    np.testing.assert_allclose(heights, expected)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["clean", *three.attacks]


@pytest.mark.parametrize(("panel", "attack"), [(1, "cw"), (2, "adaptive")])
def test_roc_shows_the_deployed_detector_on_all_images_per_attack(
    one: Results, drawn: dict, panel: int, attack: str
) -> None:
    figure, wanted = drawn["roc"], ("gaussian", attack, "all")
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["gaussian, static pgd", "gaussian, static cw", "gaussian, adaptive"]
    [line] = lines(figure.axes[panel], legend(figure)["tla"])
    points = np.array([(p.fpr, p.tpr) for p in one.of("tla")[0].roc if (p.detector, p.attack, p.subset) == wanted])
    drawn = line.get_xydata()
    assert tuple(drawn[0]) == (0, 0)
    assert tuple(drawn[-1]) == (1, 1)
    area = np.trapezoid(points[:, 1], points[:, 0])
    assert np.trapezoid(drawn[:, 1], drawn[:, 0]) == pytest.approx(area, abs=0.005)
    assert any(list(d.get_xdata()) == [0, 1] and list(d.get_ydata()) == [0, 1] for d in figure.axes[panel].lines)


def test_scores_are_densities_on_the_bins_of_the_file_with_the_threshold(one: Results, drawn: dict) -> None:
    for axes, method in zip(drawn["scores"].axes, METHODS, strict=True):
        [model] = one.of(method)
        steps = dict(zip(("natural", "pgd", "adaptive"), (patch.get_data() for patch in axes.patches), strict=True))
        for images, (density, edges, _) in steps.items():
            bins = [each for each in model.scores if (each.detector, each.images) == ("gaussian", images)]
            np.testing.assert_allclose(edges[:-1], [each.low for each in bins])
            np.testing.assert_allclose(density * np.diff(edges) * SAMPLES, [each.count for each in bins])
        assert axes.get_title("left") == f"{method} (seed 0)"
        [threshold] = axes.lines
        assert list(threshold.get_xdata()) == [model.detect.deployed.threshold] * 2


def test_a_threshold_beyond_the_bins_is_in_sight(one: Results) -> None:
    [model] = one.of("tla")
    deployed = model.detect.deployed.model_copy(update={"threshold": 1e3})
    detect = model.detect.model_copy(update={"detectors": model.detect.detectors | {"gaussian": deployed}})
    results = replace(one, methods=("tla",), models=(replace(model, detect=detect),))
    assert figures.score_histograms(results).axes[0].get_xlim()[1] == 1e3


def test_detection_along_epsilon_is_solid_for_static_and_dashed_for_adaptive_attacks(one: Results, drawn: dict) -> None:
    figure = drawn["detection_vs_epsilon"]
    [axes] = figure.axes
    points = one.of("alp")[0].detection
    static, adaptive = lines(axes, legend(figure)["alp"])
    for line, style, attack in ((static, "-", "pgd"), (adaptive, "--", "adaptive")):
        assert line.get_linestyle() == style
        np.testing.assert_allclose(line.get_ydata(), [100 * p.auc for p in points if p.attack == attack])
    edges = band(axes, METHODS.index("alp"))
    last = [p for p in points if p.attack == "pgd"][-1]
    assert edges[np.isclose(edges[:, 0], last.epsilon), 1].min() == pytest.approx(100 * last.low)
    assert any(list(line.get_ydata()) == [50, 50] for line in axes.lines)
    assert any(list(line.get_xdata()) == [EPSILON, EPSILON] for line in axes.lines)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["static pgd", "adaptive"]


def test_detectors_stand_with_their_static_and_their_adaptive_auc(one: Results, drawn: dict) -> None:
    assert [axes.get_title("left") for axes in drawn["detectors"].axes] == list(METHODS)
    axes = drawn["detectors"].axes[METHODS.index("at")]
    found = one.of("at")[0].detect.detectors
    static, adaptive = (container.lines[0] for container in axes.containers)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["gaussian", "knn", "energy"]
    order = [found[name] for name in ("gaussian", "knn", "energy")]
    np.testing.assert_allclose(static.get_xdata(orig=False), [100 * d.static["pgd"].all.auc.value for d in order])
    np.testing.assert_allclose(adaptive.get_xdata(orig=False), [100 * d.adaptive.all.auc.value for d in order])
    assert static.get_markerfacecolor() == "white" != adaptive.get_markerfacecolor()


@pytest.mark.parametrize("attacks", [("pgd",), ("pgd", "cw", "mim")])
def test_one_method_one_detector_and_any_number_of_static_attacks(three: Results, attacks: tuple[str, ...]) -> None:
    def changed(model):
        deployed = model.detect.deployed
        found = {"static": dict.fromkeys(attacks, deployed.static["pgd"])}
        detectors = {"gaussian": deployed.model_copy(update=found)}
        return replace(model, detect=model.detect.model_copy(update={"detectors": detectors}))

    results = replace(three, methods=("tla",), models=tuple(map(changed, three.of("tla"))))
    drawn = {name: figures.FIGURES[name](results) for name in ("roc", "scores", "detection_vs_epsilon", "detectors")}
    panels = {name: len(figure.axes) for name, figure in drawn.items()}
    assert panels == {"roc": len(attacks) + 1, "scores": 1, "detection_vs_epsilon": 1, "detectors": 1}
    aucs = [100 * model.detect.deployed.adaptive.all.auc.value for model in results.models]
    [line, *_] = drawn["detectors"].axes[0].containers[1].lines
    assert line.get_xdata() == pytest.approx(np.mean(aucs))


def test_training_curves_leave_out_epochs_without_validation(three: Results) -> None:
    figure = figures.training_curves(three)
    loss, clean, _ = figure.axes
    colour = legend(figure)["alp"]
    assert list(lines(loss, colour)[0].get_xdata()) == list(range(1, 41))
    assert list(lines(clean, colour)[0].get_xdata()) == list(range(2, 41, 2))
    last = np.mean([model.epochs["val_clean"][-1] for model in three.of("alp")])
    assert lines(clean, colour)[0].get_ydata()[-1] == pytest.approx(100 * last)


def test_triplet_terms_are_of_the_methods_that_have_them(one: Results, drawn: dict) -> None:
    figure = drawn["triplet"]
    assert figure is not None
    assert list(legend(figure)) == ["tla"]
    active, distances = figure.axes
    np.testing.assert_allclose(active.lines[0].get_ydata(), 100 * np.array(one.of("tla")[0].epochs["active"]))
    assert len(distances.lines) == 2


def test_tsne_has_a_panel_per_method_with_dots_and_crosses(one: Results, drawn: dict) -> None:
    figure = drawn["tsne"]
    assert [axes.get_title("left") for axes in figure.axes] == [f"{method} (seed 0)" for method in METHODS]
    natural, adversarial = figure.axes[3].collections
    points = one.of("tla")[0].tsne
    np.testing.assert_allclose(adversarial.get_offsets(), [(p.x, p.y) for p in points if p.kind == "adversarial"])
    assert len(np.unique(natural.get_facecolors(), axis=0)) == len({p.label for p in points})


def test_a_method_has_one_colour_in_every_figure(drawn: dict) -> None:
    from matplotlib.colors import to_hex

    legends = [legend(figure) for name, figure in drawn.items() if figure and name != "tsne"]
    for i, method in enumerate(METHODS):
        colours = {to_hex(colours[method]) for colours in legends if method in colours}
        colours.add(to_hex(drawn["scores"].axes[i].patches[2].get_edgecolor()))
        colours.add(to_hex(drawn["detectors"].axes[i].containers[0].lines[0].get_color()))
        assert len(colours) == 1
    assert len({to_hex(colour) for colour in legends[0].values()}) == len(METHODS)


def test_one_epoch_without_validation_and_very_many_classes(one: Results) -> None:
    def small(model):
        tsne = [point.model_copy(update={"label": i % 200}) for i, point in enumerate(model.tsne)]
        return replace(model, training=model.training[:1], tsne=tsne)

    results = replace(one, models=tuple(map(small, one.models)))
    assert len(figures.training_curves(results).axes[1].lines[0].get_xdata()) == 0
    assert list(legend(figures.tsne_maps(results))) == ["natural", "adversarial"]


def test_matplotlib_is_imported_for_drawing_only_and_without_pyplot(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics", ["tla"])
    code = f"""
import sys
from pathlib import Path
import trl.report
results = trl.report.load_results(Path({str(tmp_path)!r}, "metrics"), ["tla"], [0])
trl.report.text_table(results)
assert "matplotlib" not in sys.modules
trl.report.figures.attack_accuracies(results).savefig(Path({str(tmp_path)!r}, "attacks.png"))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_models_attacked_together_have_bars_of_what_fools_all_and_each(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path, seeds=(0, 1))
    write_ensemble(folder, "two", ("um", "tla"), (0, 1))
    results = load_results(folder, METHODS, (0, 1), ensembles=["two"])
    figure = figures.FIGURES["ensembles"](results)
    assert figure is not None
    [axes] = figure.axes
    heights = [bar.get_height() for bar in axes.patches]  # clean, average and minmax, each for all, um and tla
    assert heights == pytest.approx([1, 4, 4, 20.5, 23.5, 23.5, 26, 29, 29])
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "all models",
        "um\nweight 0.50",
        "tla\nweight 0.50",
    ]
