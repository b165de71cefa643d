import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trl.report.synthetic import EPSILON, METHODS, write_metrics
from trl.report import figures, load_results
from trl.report.results import Results


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(write_metrics(tmp_path_factory.mktemp("metrics")), METHODS, [0])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(write_metrics(tmp_path_factory.mktemp("metrics"), seeds=(0, 1, 2)), METHODS, [0, 1, 2])


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


def test_robust_accuracy_falls_along_the_curves_of_the_file(one: Results) -> None:
    figure = figures.robust_accuracy_vs_epsilon(one)
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


def test_roc_shows_the_subset_of_all_images_per_attack(one: Results) -> None:
    figure = figures.roc_curves(one)
    assert [axes.get_title("left") for axes in figure.axes] == ["Detection of pgd", "Detection of cw"]
    [line] = lines(figure.axes[1], legend(figure)["tla"])
    points = np.array([(p.fpr, p.tpr) for p in one.of("tla")[0].roc if (p.attack, p.subset) == ("cw", "all")])
    drawn = line.get_xydata()
    assert tuple(drawn[0]) == (0, 0)
    assert tuple(drawn[-1]) == (1, 1)
    area = np.trapezoid(points[:, 1], points[:, 0])
    assert np.trapezoid(drawn[:, 1], drawn[:, 0]) == pytest.approx(area, abs=0.005)
    assert any(list(d.get_xdata()) == [0, 1] and list(d.get_ydata()) == [0, 1] for d in figure.axes[1].lines)


def test_training_curves_leave_out_epochs_without_validation(three: Results) -> None:
    figure = figures.training_curves(three)
    loss, clean, _ = figure.axes
    colour = legend(figure)["alp"]
    assert list(lines(loss, colour)[0].get_xdata()) == list(range(1, 41))
    assert list(lines(clean, colour)[0].get_xdata()) == list(range(2, 41, 2))
    last = np.mean([model.epochs["val_clean"][-1] for model in three.of("alp")])
    assert lines(clean, colour)[0].get_ydata()[-1] == pytest.approx(100 * last)


def test_triplet_terms_are_of_the_methods_that_have_them(one: Results) -> None:
    figure = figures.triplet_terms(one)
    assert figure is not None
    assert list(legend(figure)) == ["tla"]
    active, distances = figure.axes
    np.testing.assert_allclose(active.lines[0].get_ydata(), 100 * np.array(one.of("tla")[0].epochs["active"]))
    assert len(distances.lines) == 2


def test_tsne_has_a_panel_per_method_with_dots_and_crosses(one: Results) -> None:
    figure = figures.tsne_maps(one)
    assert [axes.get_title("left") for axes in figure.axes] == [f"{method} (seed 0)" for method in METHODS]
    natural, adversarial = figure.axes[3].collections
    points = one.of("tla")[0].tsne
    np.testing.assert_allclose(adversarial.get_offsets(), [(p.x, p.y) for p in points if p.kind == "adversarial"])
    assert len(np.unique(natural.get_facecolors(), axis=0)) == len({p.label for p in points})


def test_a_method_has_one_colour_in_every_figure(one: Results) -> None:
    from matplotlib.colors import to_hex

    legends = [legend(draw(one)) for name, draw in figures.FIGURES.items() if name != "tsne"]
    for method in METHODS:
        assert len({to_hex(colours[method]) for colours in legends if method in colours}) == 1
    assert len({to_hex(colour) for colour in legends[0].values()}) == len(METHODS)


def test_one_epoch_without_validation_and_very_many_classes(one: Results) -> None:
    def small(model):
        epochs = {column: values[:1] for column, values in model.epochs.items()}
        tsne = [point.model_copy(update={"label": i % 200}) for i, point in enumerate(model.tsne)]
        return replace(model, epochs=epochs, tsne=tsne)

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
