"""What Prefect's pages show of a flow run: its name, and the comparison with links."""

import shutil
from pathlib import Path

import pytest

from flows.artifact import key, name_of, publish
from tests.helpers import ROOT
from tests.helpers.synthetic_results import write_metrics
from trl.config import load_params
from trl.report import load_results


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_flow_run_is_named_by_what_it_compares(project: Path) -> None:
    nothing = dict.fromkeys(("recipe", "methods", "seeds", "overrides"))
    assert name_of(nothing) == "digits: um, at, alp, tla; seed 0"
    given = {"recipe": "mnist", "methods": ["at"], "seeds": [0, 1], "overrides": ["recipes.mnist.train.epochs=3"]}
    assert name_of(given) == "mnist: at; seeds 0, 1 recipes.mnist.train.epochs=3"
    (project / "params.yaml").write_text("{")
    assert name_of(nothing) == "trl"


def test_a_key_is_one_that_prefect_allows() -> None:
    assert key("Mnist_CPU.2") == "comparison-mnist-cpu-2"


@pytest.mark.e2e
def test_the_comparison_is_an_artifact_with_links(project: Path) -> None:
    from prefect import flow
    from prefect.artifacts import Artifact
    from prefect.testing.utilities import prefect_test_harness

    params = load_params(as_written=True)
    results = load_results(write_metrics(project / "metrics", ["um", "tla"]), ["um", "tla"], [0])
    recorded = ["warning: a", "this comparison: http://127.0.0.1:5000/#/a?b", "models: http://127.0.0.1:5000/#/c"]

    @flow
    def run() -> str:
        return publish(params, results, recorded, "outputs/digits/report/index.html")

    with prefect_test_harness():
        said = run()
        found = Artifact.get("comparison-digits")
    assert found is not None
    assert "| method | clean |" in found.data
    assert "[this comparison](http://127.0.0.1:5000/#/a?b)" in found.data
    assert [line.split()[-1] for line in said.splitlines()] == [
        "outputs/digits/report/index.html",
        "http://127.0.0.1:5000/#/a?b",
        "http://127.0.0.1:5000/#/c",
    ]
