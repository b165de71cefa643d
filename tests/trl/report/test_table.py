import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.synthetic_results import METHODS, add_threats, write_certificates, write_metrics
from trl.report import load_results, text_table, write_csv
from trl.report.table import (
    Cell,
    Column,
    certificates,
    comparison,
    detection,
    detectors,
    representation,
    show_epsilon,
)
from trl.results import Results

COLUMNS = ["clean", "fgsm", "bim", "pgd", "cw", "mim", "worst", "AUC pgd", "AUC cw", "AUC adaptive", "rejecting"]


@pytest.fixture
def one(tmp_path: Path) -> Results:
    return load_results(write_metrics(tmp_path), METHODS, [0])


@pytest.fixture
def three(tmp_path: Path) -> Results:
    return load_results(write_metrics(tmp_path, seeds=(0, 1, 2)), METHODS, [0, 1, 2])


def with_accuracies(results: Results, method: str, attack: str, accuracies: list[float]) -> Results:
    """`results` with the given accuracy of each seed of `method` under `attack`."""
    given = iter(accuracies)

    def changed(model):
        if model.method != method:
            return model
        robust = model.attack.robust
        figure = robust[attack].model_copy(update={"accuracy": next(given)})
        return replace(model, attack=model.attack.model_copy(update={"robust": robust | {attack: figure}}))

    return replace(results, models=tuple(map(changed, results.models)))


def test_several_seeds_give_mean_and_standard_deviation(three: Results) -> None:
    results = with_accuracies(three, "tla", "pgd", [0.5, 0.6, 0.7])
    column = {c.title: c for c in comparison(results)}["pgd"]
    assert column.text("tla") == "60.0 ± 10.0"
    assert column.uncertainty("tla") == "± 10.0"


def test_one_seed_gives_the_value_and_its_interval(one: Results) -> None:
    figure = one.of("at")[0].attack.robust["pgd"]
    column = {c.title: c for c in comparison(one)}["pgd"]
    assert column.text("at") == f"{100 * figure.accuracy:.1f}"
    assert column.uncertainty("at") == f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"
    auc = one.of("at")[0].detect.deployed.adaptive.all.auc
    column = {c.title: c for c in comparison(one)}["AUC adaptive"]
    assert column.text("at") == f"{100 * auc.value:.1f}"
    assert column.uncertainty("at") == f"{100 * auc.low:.1f}–{100 * auc.high:.1f}"


def test_columns_are_clean_attacks_worst_and_detection(one: Results) -> None:
    assert [column.title for column in comparison(one)] == COLUMNS
    cells = {column.title: column.cells["tla"].mean for column in comparison(one)}
    model = one.of("tla")[0]
    assert cells["clean"] == model.attack.clean.accuracy
    assert cells["worst"] == model.attack.robust["worst"].accuracy
    assert cells["AUC cw"] == model.detect.deployed.static["cw"].all.auc.value
    assert cells["AUC adaptive"] == model.detect.deployed.adaptive.all.auc.value
    assert cells["rejecting"] == model.detect.deployed.rejection.worst.accuracy


def test_detection_is_of_the_deployed_detector_by_attack(one: Results) -> None:
    groups = detection(one)
    assert list(groups) == ["pgd", "cw", "adaptive"]
    deployed = one.of("tla")[0].detect.detectors["gaussian"]
    for attack, subsets in {**deployed.static, "adaptive": deployed.adaptive}.items():
        figures = [subsets.all.auc, subsets.successful.auc, subsets.failed.auc]
        figures += [subsets.all.aupr, subsets.all.fpr95, subsets.all.tpr01, subsets.all.tpr05]
        cells = [column.cells["tla"] for column in groups[attack]]
        assert [(c.mean, c.low, c.high) for c in cells] == [(f.value, f.low, f.high) for f in figures]
    assert [c.title for c in groups["pgd"] if not c.higher_is_better] == [
        "false alarms at 95 % found (lower is better)"
    ]


def test_certificates_have_a_column_per_radius(tmp_path: Path) -> None:
    folder = write_certificates(write_metrics(tmp_path, seeds=(0, 1)), ["at", "tla"], (0, 1))
    columns = {column.title: column for column in certificates(load_results(folder, METHODS, [0, 1], ["at", "tla"]))}
    titles = ["r = 0", "r = 0.25", "r = 0.5", "r = 1", "abstained (lower is better)", "mean radius"]
    assert list(columns) == titles
    assert all(column.cells.keys() == {"at", "tla"} for column in columns.values())
    assert columns["r = 0.5"].cells["tla"].values == pytest.approx((0.75, 0.74))
    assert columns["mean radius"].text("at") == "0.705 ± 0.007"


def test_detectors_are_compared_within_each_method(one: Results, three: Results) -> None:
    groups = detectors(one)
    assert list(groups) == list(METHODS)
    columns = {column.title: column for column in groups["at"]}
    assert list(columns["rejecting"].cells) == ["gaussian", "knn", "energy"]
    energy = one.of("at")[0].detect.detectors["energy"]
    assert {title: column.cells["energy"].mean for title, column in columns.items()} == {
        "AUC pgd": energy.static["pgd"].all.auc.value,
        "AUC adaptive": energy.adaptive.all.auc.value,
        "AUC adaptive, successful": energy.adaptive.successful.auc.value,
        "rejecting, clean": energy.rejection.clean.accuracy,
        "rejecting, pgd": energy.rejection.static["pgd"].accuracy,
        "rejecting": energy.rejection.worst.accuracy,
        "false alarms (aim: 1 %)": energy.false_alarms.value,
    }
    assert columns["AUC pgd"].best() == {"energy"}  # what is best against attacks that know nothing of it
    assert columns["AUC adaptive"].best() == {"gaussian"}  # is not against those that do
    assert columns["false alarms (aim: 1 %)"].best() == set()
    aucs = [model.detect.detectors["knn"].adaptive.all.auc.value for model in three.of("tla")]
    assert detectors(three)["tla"][1].cells["knn"].std == pytest.approx(np.std(aucs, ddof=1))


def test_detection_and_representation_show_what_does_not_exist_as_a_dash(one: Results, three: Results) -> None:
    for results in (one, three):
        columns = {column.title: column for column in [*detection(results)["pgd"], *representation(results)]}
        assert (columns["AUC, failed"].text("um"), columns["AUC, failed"].uncertainty("um")) == ("–", "")
    columns = {column.title: column for column in representation(one)}
    assert columns["r′ (lower is better)"].text("um") == "–"
    assert columns["r (higher is better)"].text("tla") == f"{one.of('tla')[0].detect.representation.r:.3f}"


@pytest.mark.parametrize("seeds", ["one", "three"])
def test_text_table_is_aligned_and_in_order(seeds: str, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(seeds)
    table, _, note = text_table(results).partition("\n\n")
    header, rule, *rows = table.splitlines()
    assert len({len(line) for line in [header, rule, *rows]}) == 1
    assert [row.split()[0] for row in rows] == list(METHODS)
    assert header.replace("AUC ", "AUC_").split() == ["method", *(c.replace(" ", "_") for c in COLUMNS)]
    ends = [i for i, char in enumerate(rule) if char == "─" and rule[i + 1 : i + 2] in ("", " ")]
    assert all(row[end] != " " for row in rows for end in ends[1:])  # numbers are flush right under their rule
    assert ("standard deviation over seeds 0, 1, 2" in note) == (seeds == "three")
    assert "epsilon 0.2" in note


def test_text_table_of_hand_made_numbers(one: Results) -> None:
    results = with_accuracies(one, "um", "worst", [0.12345])
    um = text_table(results).splitlines()[2].split()
    assert um[COLUMNS.index("worst") + 1] == "12.3"


def read_csv(results: Results, path: Path) -> dict[tuple[str, str], dict[str, str]]:
    write_csv(results, path)
    return {(row["method"], row["measure"]): row for row in csv.DictReader(path.open())}


def test_csv_holds_means_and_deviations_in_percent(three: Results, tmp_path: Path) -> None:
    rows = read_csv(with_accuracies(three, "alp", "cw", [0.5, 0.6, 0.7]), tmp_path / "comparison.csv")
    assert set(rows) == {(method, measure) for method in METHODS for measure in COLUMNS}
    assert float(rows["alp", "cw"]["mean"]) == pytest.approx(60)
    assert float(rows["alp", "cw"]["std"]) == pytest.approx(10)
    assert rows["alp", "cw"]["low"] == rows["alp", "cw"]["high"] == ""


def test_csv_of_one_seed_has_an_interval_and_no_deviation(one: Results, tmp_path: Path) -> None:
    rows = read_csv(one, tmp_path / "comparison.csv")
    assert {row["std"] for row in rows.values()} == {""}
    for method in METHODS:
        low, mean, high = (float(rows[method, "worst"][name]) for name in ("low", "mean", "high"))
        assert 0 <= low <= mean <= high <= 100


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=6))
def test_a_cell_summarises_the_seeds_that_have_a_value(values: list[float]) -> None:
    defined = np.array([v for v in values if not math.isnan(v)])
    cell = Cell(tuple(values))
    assert cell.mean == pytest.approx(defined.mean(), abs=1e-12) if len(defined) else math.isnan(cell.mean)
    assert cell.std == pytest.approx(defined.std(ddof=1), abs=1e-12) if len(defined) > 1 else math.isnan(cell.std)


@pytest.mark.parametrize(
    ("means", "higher", "best"),
    [
        ((0.1, 0.9, 0.5), True, {"b"}),
        ((0.1, 0.9, 0.5), False, {"a"}),
        ((0.5001, 0.5004, 0.1), True, {"a", "b"}),  # 50.0 both
        ((0.3, 0.3, 0.3), True, set()),
        ((math.nan, 0.3, 0.4), False, {"b"}),
        ((math.nan, 0.3, math.nan), True, set()),
        ((math.nan, math.nan, math.nan), True, set()),
        ((0.1, 0.9, 0.5), None, set()),
    ],
)
def test_best_of_a_column(means: tuple[float, ...], higher: bool | None, best: set[str]) -> None:
    cells = {name: Cell((mean,)) for name, mean in zip("abc", means, strict=True)}
    assert Column("x", cells, higher_is_better=higher).best() == best


@pytest.mark.parametrize(
    ("epsilon", "text"), [(0.3, "0.3"), (0, "0"), (8 / 255, "8/255"), (0.2, "0.2"), (1 / 7, "0.1429"), (2.0, "2")]
)
def test_epsilon_is_written_as_the_field_does(epsilon: float, text: str) -> None:
    assert show_epsilon(epsilon) == text


def test_further_threats_stand_beside_the_recipes(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path)
    add_threats(folder)
    results = load_results(folder, METHODS, [0])
    found = {column.title: column for column in comparison(results)}
    assert [*found] == [*COLUMNS[:7], "local worst", "union", *COLUMNS[7:]]
    attack = results.of("at")[0].attack
    assert found["local worst"].cells["at"].mean == attack.threats["local"].robust["worst"].accuracy
    assert attack.union is not None
    assert found["union"].cells["at"].low == attack.union.low
