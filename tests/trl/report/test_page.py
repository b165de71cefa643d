import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.synthetic_results import METHODS, add_threats, write_certificates, write_ensemble, write_metrics
from trl.common.errors import TrlError
from trl.report import load_results, write_report
from trl.report.table import certificates, comparison, detection, detectors

FIGURES = [
    *("robust_accuracy_vs_epsilon", "certified_accuracy", "attacks"),
    *("roc", "scores", "detection_vs_epsilon", "detectors"),
    *("training_curves", "triplet", "tsne"),
]
PARAMETERS: dict[str, Any] = {
    "data": {"name": "digits", "validation": 300, "split_seed": 0},
    "model": {"name": "mlp", "options": {"widths": (256, 128)}},  # a tuple, as a validated section has it
    "threat": {"norm": "linf", "epsilon": 8 / 255},
}


class Page(HTMLParser):
    """The page's elements with their attributes, and its text by element."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.elements, self.texts = path, list[tuple[str, dict[str, str | None]]](), list[tuple[str, str]]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.elements[-1][0], data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str | None = None) -> str:
        return "\n".join(text for name, text in self.texts if tag in (None, name))


@pytest.fixture(scope="module", params=[(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("report")
    metrics = write_certificates(write_metrics(folder / "metrics", seeds=request.param), ["um", "tla"], request.param)
    results = load_results(metrics, METHODS, request.param, ["um", "tla"])
    return results, Page(write_report(results, "digits-quick", PARAMETERS, folder / "report"))


def test_the_page_needs_nothing_outside_itself(case) -> None:
    _, page = case
    references = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert references
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    source = page.path.read_text()
    assert not any(word in source for word in ("http:", "https:", "file:", "@import", "url(", "<script", "<link"))


def test_the_title_names_recipe_data_and_threat(case) -> None:
    _, page = case
    assert "digits-quick" in page.text("h1")
    assert "ℓ∞, ε = 8/255" in page.text("dd")
    assert "digits" in page.text("dd").splitlines()


def test_every_number_of_the_tables_is_in_the_page(case) -> None:
    results, page = case
    for columns in [
        comparison(results),
        certificates(results),
        *detection(results).values(),
        *detectors(results).values(),
    ]:
        for column in columns:
            assert column.title in page.text("th").splitlines()
            for row, cell in column.cells.items():
                assert column.show(cell.mean) in page.text().splitlines()
                assert column.uncertainty(row) in page.text("small")
    assert "–" in page.text("td").splitlines()  # um has no failed attack
    assert ("±" in page.text("small")) == (len(results.seeds) > 1)


def test_the_best_of_a_column_is_bold(case) -> None:
    results, page = case
    clean = comparison(results)[0]
    assert clean.best() == {"um"}
    assert clean.show(clean.cells["um"].mean) in page.text("b").splitlines()


def test_every_figure_is_inside_the_page_and_described(case) -> None:
    _, page = case
    written = {path.stem: path.read_bytes() for path in page.path.parent.glob("*.png")}
    assert [figure["id"] for figure in page.of("figure")] == FIGURES
    for figure, image in zip(page.of("figure"), page.of("img"), strict=True):
        assert base64.b64decode(image["src"].partition(",")[2]) == written[figure["id"]]
        assert all(method in image["alt"] for method in METHODS)
    assert len(page.text("figcaption").splitlines()) == len(FIGURES)


def test_tables_say_what_their_headers_head(case) -> None:
    results, page = case
    scopes = [header["scope"] for header in page.of("th")]
    assert set(scopes) == {"col", "row", "rowgroup"}
    assert len(page.of("caption")) == len(page.of("table")) == 7
    assert scopes.count("rowgroup") == len(detection(results)) + len(METHODS)
    by_attack, by_detector = len(detection(results)) * len(METHODS), len(results.detectors) * len(METHODS)
    assert scopes.count("row") == 2 * len(METHODS) + by_attack + by_detector + 2 * len(results.models) + 2


def test_certificates_come_with_their_settings(case) -> None:
    _, page = case
    assert "Certificates" in page.text("h2")
    assert "on the first 597 test images" in page.text("span")
    assert "at most 0.001 (noise σ = 0.5, 10,000 draws per image)" in page.text("span")


def test_the_reader_is_told_what_static_adaptive_and_rejecting_mean(case) -> None:
    _, page = case
    assert {"AUC pgd", "AUC cw", "AUC adaptive", "rejecting"} <= set(page.text("b").splitlines())
    assert "chosen to reject 1\u00a0% of natural images" in page.text()


def test_models_are_listed_with_what_they_took(case) -> None:
    results, page = case
    assert page.text("code").splitlines() == [model.train.weights[:12] for model in results.models]
    assert "38 of 40" in page.text("td")


def test_parameters_are_quoted_as_yaml(case) -> None:
    _, page = case
    quoted = yaml.safe_load(page.text("pre"))
    assert quoted == PARAMETERS | {"model": {"name": "mlp", "options": {"widths": [256, 128]}}}


def test_the_same_results_give_the_same_bytes_without_figures_that_do_not_apply(tmp_path: Path) -> None:
    results = load_results(write_metrics(tmp_path, ["at"]), ["at"], [0])
    first, second = (write_report(results, "digits", PARAMETERS, tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert {path.stem for path in first.parent.glob("*.png")} == set(FIGURES) - {"triplet", "certified_accuracy"}
    page = Page(first)
    left = [name for name in FIGURES if name not in ("triplet", "certified_accuracy")]
    assert [figure["id"] for figure in page.of("figure")] == left
    assert "Certificates" not in page.text("h2")


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = "<b>a&t"
    results = load_results(write_metrics(tmp_path, [name]), [name], [0])
    page = Page(write_report(results, "<i>recipe", PARAMETERS | {"note": "</pre><em>"}, tmp_path / "report"))
    assert not page.of("i")
    assert "<i>recipe" in page.text("h1")
    assert name in page.text("th").splitlines()
    assert "</pre><em>" in page.text("pre")


def test_warnings_and_the_parts_of_an_ensemble_are_shown(case) -> None:
    results, page = case
    text = page.text()
    assert "Before you believe these numbers" in text
    assert text.count("tiny changes do not change the <logits>") == len(results.seeds)
    assert text.count("knn detector: credit: more than <plain>") == len(results.seeds)
    assert "autoattack, part by part" in text
    for model in results.models:
        assert f"{100 * model.attack.stages['autoattack']['square'].accuracy:.1f}" in text


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def test_models_attacked_together_have_a_section_and_a_figure(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    folder = write_metrics(tmp_path / "metrics", seeds=seeds)
    write_ensemble(folder, "um_at_tla", seeds=seeds)
    results = load_results(folder, METHODS, seeds, ensembles=["um_at_tla"])
    page = Page(write_report(results, "digits-quick", PARAMETERS, tmp_path / "report"))
    assert "Attacked together: um, at, tla" in page.text("h2")
    assert [figure["id"] for figure in page.of("figure")] == [
        name for name in [*FIGURES[:7], "ensembles", *FIGURES[7:]] if name != "certified_accuracy"
    ]
    assert "min-max fools all models on +6.0 points more" in page.text("li")
    assert (tmp_path / "report" / "ensembles.png").stat().st_size > 10_000


def test_an_ensemble_of_other_seeds_or_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path, seeds=(0, 1))
    write_ensemble(folder, "two")
    with pytest.raises(TrlError, match=r"two/ensemble.json: measured for other seeds; run the ensemble stage"):
        load_results(folder, METHODS, (0, 1), ensembles=["two"])
    with pytest.raises(TrlError, match=r"three/ensemble.json: .*run the ensemble stage"):
        load_results(folder, METHODS, (0,), ensembles=["three"])


def test_the_page_says_what_a_threat_with_a_region_is_worth(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "metrics")
    add_threats(folder)
    region = {"name": "border", "width": 2}
    parameters = {**PARAMETERS, "threat": {"norm": "l2", "epsilon": 0.5, "region": region}}
    text = Page(write_report(load_results(folder, METHODS, [0]), "digits", parameters, tmp_path / "report")).text()
    assert "ℓ2, ε = 0.5, inside border:width=2" in text
    assert "is the worst case under another threat, ℓ∞, ε = 0.2, inside background:threshold=0.1" in text
    assert "need not be so elsewhere" in text
