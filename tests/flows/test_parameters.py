import re
from pathlib import Path

import pytest

from flows.parameters import overridden, override
from trl.common.errors import TrlError

WHOLE = (Path(__file__).parents[2] / "params.yaml").read_text()
# Its first two recipes, digits and mnist: reading and writing all of them takes a second.
TEXT = "".join(re.split(r"(?m)^(?=  \w+:$)", WHOLE)[:3])


def changed_lines(overrides: list[str]) -> list[str]:
    return [
        new for new, old in zip(overridden(TEXT, overrides).splitlines(), TEXT.splitlines(), strict=True) if new != old
    ]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("recipe=mnist", "recipe: mnist"),
        ("seeds=[0, 1]", "seeds: [0, 1]"),
        ("recipes.digits.threat.epsilon=8/255", "    threat: {norm: linf, epsilon: 8/255}"),
        ("recipes.digits.data.validation=151", "    data: {name: digits, validation: 151}"),
    ],
)
def test_an_override_changes_its_own_line_only(key: str, line: str) -> None:
    assert changed_lines([key]) == [line]


def test_all_recipes_stay_as_they_are() -> None:
    """So that what the other tests leave out is kept, too."""
    assert len(TEXT) < len(WHOLE) / 2
    assert overridden(WHOLE, ["seeds=[0, 1]"]) == WHOLE.replace("\nseeds: [0]", "\nseeds: [0, 1]")


def test_the_comment_of_a_changed_line_stays() -> None:
    [line] = changed_lines(['methods=["um", "at"]'])
    assert line.split() == TEXT.splitlines()[2].replace("[um, at, alp, tla]", "[um, at]").split()
    assert "#" in line


def test_values_that_hold_already_change_nothing() -> None:
    assert overridden(TEXT, ["recipe=digits", "seeds=[0]"]) == TEXT


def test_keys_can_be_added_and_removed(params: Path) -> None:
    now = override(["+recipes.digits.train.ema=0.99", "~recipes.digits.methods.tla_rn"]).recipes["digits"]
    assert now.train.ema == 0.99
    assert "tla_rn" not in now.methods
    assert "tla_sa" in now.methods


def test_a_huge_number_stays_a_number(params: Path) -> None:
    assert override(["recipes.digits.train.optimizer.lr=1e30"]).recipes["digits"].train.optimizer.lr == 1e30


def test_what_is_returned_is_what_the_file_says(params: Path) -> None:
    assert override(["methods=[at, tla]", "seeds=[3]"]).methods == ("at", "tla")
    assert override([]).seeds == (3,)


@pytest.mark.parametrize(
    ("wrong", "explained"),
    [
        ("recipes.digits.train.epochs=0", "recipes.digits.train.epochs"),
        ("recipe=cifar11", "unknown recipe 'cifar11'"),
        ("methods=[nothing]", "unknown method 'nothing'"),
        ("recipes.digits.train.epoch=3", "recipes.digits.train.epoch"),
        ("recipes.digits.train.epochs", "Error parsing override"),
        ("recipe=[", "override of params.yaml"),
    ],
)
def test_a_wrong_override_is_one_line_and_leaves_the_file(params: Path, wrong: str, explained: str) -> None:
    with pytest.raises(TrlError) as error:
        override(["seeds=[7]", wrong])
    assert explained in str(error.value)
    assert "\n" not in str(error.value)
    assert params.read_text() == TEXT
