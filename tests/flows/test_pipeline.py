"""Results come back to the project only where they are what its parameters, code and data ask for."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.pipeline import Pipeline, in_order
from flows.snapshot import snapshot
from trl.common.errors import TrlError

GRAPH = """\
stages:
  one:
    cmd: echo ran >> ran; cp source one
    deps: [source]
    params: [a]
    outs: [one]
  two:
    matrix: {of: "${list}"}
    cmd: echo ran >> ran; mkdir two-${item.of} && cp one two-${item.of}/it && echo ${item.of} > note-${item.of}
    deps: [one]
    params: [b]
    outs: ["two-${item.of}", {"note-${item.of}": {cache: false}}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "dvc.yaml": GRAPH,
        "params.yaml": "a: 1\nb: 1\nlist: [x]\n",
        "source": "data",
        ".gitignore": "/one\n/two-*\n/ran\ncheckpoints\nmlflow.db\n",
        ".dvc/config": "[core]\n    analytics = false\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


@contextlib.contextmanager
def ran(project: Path, *, change: str = "") -> Iterator[Pipeline]:
    """A snapshot, with other parameters if there is a `change`, in which every stage has run."""
    with snapshot(project) as made:
        if change:
            (made.root / "params.yaml").write_text(change)
        with contextlib.closing(Pipeline(made)) as pipeline:
            for name in pipeline.graph:
                with contextlib.chdir(made.root), contextlib.closing(Repo()) as repo:
                    repo.reproduce(targets=[name], single_item=True)
            yield pipeline


def changed(project: Path) -> set[str]:
    """What `dvc status` says of the project."""
    with contextlib.closing(Repo(str(project))) as repo:
        return set(repo.status())


def files(project: Path) -> dict[str, str]:
    """The project's results, and what it has of dvc.lock."""
    paths = [p for p in project.rglob("*") if p.is_file() and not {".git", ".dvc"} & set(p.parts)]
    return {str(p.relative_to(project)): p.read_text() for p in paths}


def test_models_are_finished_one_after_the_other() -> None:
    """So that a waiting stage seldom takes the place of one that could run."""
    trains = {f"train-{m}": ["prepare"] for m in "ab"}
    rest = {f"{stage}-{m}": [f"train-{m}"] for stage in ("attack", "detect") for m in "ab"}
    order = list(in_order({"prepare": [], **trains, **rest}))
    assert order == ["prepare", "train-a", "train-b", "attack-a", "detect-a", "attack-b", "detect-b"]


def test_all_comes_back_where_nothing_has_changed_and_nothing_runs(project: Path) -> None:
    with ran(project) as pipeline:
        assert pipeline.graph == {"one": [], "two@x": ["one"]}
        pipeline.bring_back(pipeline.graph)
        assert pipeline.left == {}
    assert ((project / "two-x/it").read_text(), (project / "note-x").read_text()) == ("data", "x\n")
    assert not (project / "ran").exists()
    assert changed(project) == set()


@pytest.mark.parametrize(
    ("file", "text", "left"),
    [
        (
            "params.yaml",
            "a: 2\nb: 1\nlist: [x]\n",
            {"one": "its inputs have changed", "two@x": "its inputs have changed"},
        ),
        ("params.yaml", "a: 1\nb: 2\nlist: [x]\n", {"two@x": "its inputs have changed"}),
        ("params.yaml", "a: 1\nb: 1\nlist: [y]\n", {"two@x": "params.yaml does not select it"}),
        ("params.yaml", "a: 1\nb: 1\nlist: [x, y]\nc: 1\n", {}),
        ("source", "other", {"one": "its inputs have changed", "two@x": "its inputs have changed"}),
        (
            "dvc.yaml",
            GRAPH.replace("cp source one", "cp ./source one"),
            {"one": "its inputs have changed", "two@x": ""},
        ),
        ("dvc.yaml", GRAPH.replace("params: [b]", "params: [b, a]"), {"two@x": "its inputs have changed"}),
        ("dvc.yaml", GRAPH.replace('"two-${item.of}", ', ""), {"two@x": "its inputs have changed"}),
    ],
)
def test_a_stage_whose_inputs_have_changed_meanwhile_is_left_out(
    project: Path, file: str, text: str, left: dict[str, str]
) -> None:
    with ran(project) as pipeline:
        before = (project / file).read_text()
        (project / file).write_text(text)
        pipeline.bring_back(pipeline.graph)
        assert set(pipeline.left) == set(left)
        assert all(said.startswith(why) for said, why in zip(pipeline.left.values(), left.values(), strict=True))
        assert ("one" in left) != (project / "one").exists()
        assert ("two@x" in left) != (project / "two-x").exists()

        (project / file).write_text(before)  # and comes back once they are as they were
        pipeline.bring_back(list(pipeline.left))
        assert pipeline.left == {}
    assert changed(project) == set()


@pytest.mark.parametrize("broken", ["a: [1", "a: 1\nb: 1\n"])
def test_a_project_that_is_being_edited_is_left_as_it_is(project: Path, broken: str) -> None:
    with ran(project) as pipeline:
        (project / "params.yaml").write_text(broken)
        before = files(project)
        pipeline.bring_back(pipeline.graph)
        assert set(pipeline.left) == {"one", "two@x"}
        assert not any("\n" in why for why in pipeline.left.values())
        assert files(project) == before


def test_results_of_other_parameters_change_nothing(project: Path) -> None:
    with ran(project) as pipeline:
        pipeline.bring_back(pipeline.graph)
    before = files(project)
    with ran(project, change="a: 2\nb: 3\nlist: [x, z]\n") as pipeline:
        pipeline.bring_back(pipeline.graph)
        assert set(pipeline.left) == {"one", "two@x", "two@z"}
    assert files(project) == before
    assert changed(project) == set()


def test_what_is_up_to_date_is_linked_into_the_snapshot_and_restored_in_the_project(project: Path) -> None:
    with ran(project) as pipeline:
        pipeline.bring_back(pipeline.graph)
    shutil.rmtree(project / "two-x")
    (project / "one").write_text("damaged")
    with snapshot(project) as made, contextlib.closing(Pipeline(made)) as pipeline:
        assert pipeline.up_to_date() == ["one", "two@x"]
        assert (made.root / "two-x/it").stat().st_nlink > 1
        pipeline.bring_back(pipeline.graph)
    assert (project / "one").read_text() == "data"
    assert changed(project) == set()


def test_what_needs_a_changed_stage_or_is_not_in_the_cache_is_not_up_to_date(project: Path) -> None:
    with ran(project) as pipeline:
        pipeline.bring_back(pipeline.graph)
    (project / "params.yaml").write_text("a: 1\nb: 2\nlist: [x]\n")
    with snapshot(project) as made, contextlib.closing(Pipeline(made)) as pipeline:
        assert pipeline.up_to_date() == ["one"]
    shutil.rmtree(project / ".dvc/cache")
    with snapshot(project) as made, contextlib.closing(Pipeline(made)) as pipeline:
        assert pipeline.up_to_date() == []


def test_a_stage_s_inputs_are_its_parameters_its_code_and_its_data(project: Path) -> None:
    with ran(project) as pipeline:
        first = {name: pipeline.inputs(name) for name in pipeline.graph}
    with ran(project, change="a: 2\nb: 1\nlist: [x, y]\n") as pipeline:
        assert pipeline.inputs("one") != first["one"]
        assert pipeline.inputs("two@x") == first["two@x"]
    (project / "source").write_text("other")
    with ran(project) as pipeline:
        assert {name for name in first if pipeline.inputs(name) == first[name]} == set()


def test_a_broken_graph_is_one_line(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: 1")
    with snapshot(project) as made, pytest.raises(TrlError, match=r"dvc\.yaml") as error:
        Pipeline(made)
    assert "\n" not in str(error.value)
