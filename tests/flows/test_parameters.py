import functools
import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.parameters import overridden, override
from tests.helpers import ROOT
from trl.common.errors import TrlError

WHOLE = (Path(__file__).parents[2] / "params.yaml").read_text()
# Four of its recipes, which share values: reading and writing all of them takes a second.
HEAD, *RECIPES = re.split(r"(?m)^(?=  \w+:$)", WHOLE)
TEXT = HEAD + "".join(
    r for r in RECIPES if r.split(":")[0].strip() in ("digits", "mnist", "mnist_cpu", "tiny_imagenet")
)


def changed_lines(overrides: list[str]) -> list[str]:
    return [
        new for new, old in zip(overridden(TEXT, overrides).splitlines(), TEXT.splitlines(), strict=True) if new != old
    ]


@pytest.fixture
def params(tmp_path: Path) -> Path:
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
    assert len(TEXT) < len(WHOLE) * 3 / 4
    assert overridden(WHOLE, ["seeds=[0, 1]"]) == WHOLE.replace("\nseeds: [0]", "\nseeds: [0, 1]")


def test_the_comment_of_a_changed_line_stays() -> None:
    [line] = changed_lines(['methods=["um", "at"]'])
    assert line.split() == TEXT.splitlines()[2].replace("[um, at, alp, tla]", "[um, at]").split()
    assert "#" in line


def test_values_that_hold_already_change_nothing() -> None:
    assert overridden(TEXT, ["recipe=digits", "seeds=[0]"]) == TEXT


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("recipes.digits.methods.tla_rn.margin=0.1", "digits.methods.tla_rn.margin", 0.1),  # it comes by `<<`
        (
            "recipes.tiny_imagenet.methods.tla.margin=0.1",
            "tiny_imagenet.methods.tla.margin",
            0.1,
        ),  # others take it by `<<`
        ("recipes.tiny_imagenet.methods.alp.weight=1", "tiny_imagenet.methods.alp.weight", 1),  # in what comes by `<<`
        ("+recipes.tiny_imagenet.methods.tla.negative=queue", "tiny_imagenet.methods.tla.negative", "queue"),
        ("~recipes.tiny_imagenet.methods.tla_rn.pool", "tiny_imagenet.methods.tla_rn.pool", None),
        ("~recipes.tiny_imagenet.methods.at", "tiny_imagenet.methods.at", None),
        ("~recipes.mnist_cpu.methods.at", "mnist_cpu.methods.at", None),  # the whole mapping is an alias
        ("~recipes.digits.methods", "digits.methods", None),  # the whole mapping has the anchor
        ("recipes.mnist_cpu.data.validation=6000", "mnist_cpu.data.validation", 6000),
        ("recipes.mnist_cpu.attack.curve.epsilons=[0, 0.3]", "mnist_cpu.attack.curve.epsilons", [0, 0.3]),
        ("~recipes.digits", "digits", None),
    ],
)
def test_only_the_named_recipe_changes_where_values_are_shared(override: str, path: str, value: Any) -> None:
    text = overridden(TEXT, [override])
    expected = json.loads(json.dumps(yaml.safe_load(TEXT)))  # in which nothing is shared
    *parents, last = path.split(".")
    section = functools.reduce(dict.__getitem__, parents, expected["recipes"])
    if value is None:
        del section[last]
    else:
        section[last] = value
    assert yaml.safe_load(text) == expected


def test_attacks_keep_their_order_where_they_are_written_out() -> None:
    """Of two attacks that find the worst image, the first is named."""
    text = "recipes: {a: {attacks: &all {square: {}, pgd: {}, fgsm: {}, bim: {}}}, b: {attacks: *all}}\n"
    now = yaml.safe_load(overridden(text, ["+recipes.b.attacks.pgd.steps=3"]))
    assert list(now["recipes"]["b"]["attacks"]) == ["square", "pgd", "fgsm", "bim"]


@pytest.mark.parametrize("shared", ["[1, 2]", "8/255", "0.5", "[{x: 1}, {x: 2}]"])
def test_a_shared_value_of_any_kind_changes_for_one_only(shared: str) -> None:
    text = f"one: {{value: &it {shared}}}\ntwo: {{value: *it}}\nthree: [*it]\n"
    before = yaml.safe_load(shared)
    for key in ("one", "two"):
        now = yaml.safe_load(overridden(text, [f"{key}.value=[3]"]))
        assert now == {"one": {"value": before}, "two": {"value": before}, "three": [before]} | {key: {"value": [3]}}


def test_keys_can_be_added_and_removed(params: Path) -> None:
    now = override(params.parent, ["+recipes.digits.train.ema=0.99", "~recipes.digits.methods.tla_rn"]).recipes[
        "digits"
    ]
    assert now.train.ema == 0.99
    assert "tla_rn" not in now.methods
    assert "tla_sa" in now.methods


def test_a_huge_number_stays_a_number(params: Path) -> None:
    assert (
        override(params.parent, ["recipes.digits.train.optimizer.lr=1e30"]).recipes["digits"].train.optimizer.lr == 1e30
    )


def test_what_is_returned_is_what_the_file_says(params: Path) -> None:
    assert override(params.parent, ["methods=[at, tla]", "seeds=[3]"]).methods == ("at", "tla")
    assert override(params.parent, []).seeds == (3,)


@pytest.mark.parametrize(
    ("wrong", "explained"),
    [
        ("recipes.digits.train.epochs=0", "recipes.digits.train.epochs"),
        ("recipe=cifar11", "unknown recipe 'cifar11'"),
        ("methods=[nothing]", "unknown method 'nothing'"),
        ("recipes.digits.train.epoch=3", "recipes.digits.train.epoch"),
        ("recipes.digits.train.epochs", "Error parsing override"),
        ("recipe=[", "override of params.yaml"),
        ("seeds.first=1", "override of params.yaml"),
    ],
)
def test_a_wrong_override_is_one_line(params: Path, wrong: str, explained: str) -> None:
    with pytest.raises(TrlError) as error:
        override(params.parent, ["seeds=[7]", wrong])
    assert explained in str(error.value)
    assert "\n" not in str(error.value)
    assert str(params.parent) not in str(error.value)


@pytest.mark.parametrize(
    ("text", "explained"),
    [("recipe: [digits\nseeds: 1\n", "params.yaml: not valid YAML"), ("", "params.yaml: "), ("- 1\n", "params.yaml: ")],
)
def test_a_broken_file_is_one_line_with_overrides_and_without(params: Path, text: str, explained: str) -> None:
    params.write_text(text)
    for overrides in ([], ["recipe=mnist"]):
        with pytest.raises(TrlError, match=explained) as error:
            override(params.parent, overrides)
        assert "\n" not in str(error.value)


def test_anchors_that_pyyaml_made_are_unshared_too() -> None:
    """A program that rewrites params.yaml leaves `&id001`, which ruamel.yaml does not keep as an anchor."""
    text = yaml.safe_dump(yaml.safe_load((ROOT / "params.yaml").read_text()), sort_keys=False)
    assert "&id001" in text
    before, after = yaml.safe_load(text), yaml.safe_load(overridden(text, ["recipes.digits.methods.tla.lambda1=0.25"]))
    assert after["recipes"]["digits"]["methods"]["tla"].pop("lambda1") == 0.25
    del before["recipes"]["digits"]["methods"]["tla"]["lambda1"]
    others = [name for name in before["recipes"] if name != "digits"]
    fresh = yaml.safe_load(text)
    assert all(after["recipes"][name] == fresh["recipes"][name] for name in others)
    assert after["recipes"]["digits"] == before["recipes"]["digits"]


@pytest.mark.parametrize("name", ["x|touch PWNED|cat", "../../../escaped", "x;touch PWNED", "-x", "x\ny"])
def test_an_override_cannot_bring_a_name_into_a_command(params: Path, name: str) -> None:
    methods = f"{{um: {{name: natural}}, {json.dumps(name)}: {{name: natural}}}}"
    for changes in ([f"++recipes.digits.methods={methods}", f"methods=[{json.dumps(name)}]"], [f'methods=["{name}"]']):
        with pytest.raises(TrlError) as caught:
            override(params.parent, changes)
        assert "cannot be used: rename it" in str(caught.value) or "override of params.yaml" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"recipe: [digits", "params.yaml: not valid YAML: while parsing a flow"),
        (b"recipe: digits\nrecipe: mnist\n", "params.yaml: not valid YAML: while constructing a mapping"),
        (b"recipe: 2026-13-45", "params.yaml: not valid YAML: month must be in 1..12"),
        (b"recipe: \xff", "params.yaml: not valid YAML: 'utf-8' codec can't decode"),
        (b"", "params.yaml: has no keys"),
        (b"- recipe", "params.yaml: has no keys"),
        (None, "params.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_a_broken_file_is_one_line_and_is_left_as_it_is(params: Path, broken: bytes | None, message: str) -> None:
    params.unlink() if broken is None else params.write_bytes(broken)
    with pytest.raises(TrlError) as caught:
        override(params.parent, ["recipe=mnist"])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert (params.read_bytes() if params.exists() else None) == broken


def test_a_full_disk_leaves_the_parameters(params: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TrlError, match=r"File too large.*: free space or check permissions, then repeat"):
            override(params.parent, ["recipe=mnist"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert params.read_text() == TEXT
