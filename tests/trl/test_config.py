from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl.common.errors import TrlError
from trl.config import Params, check_params, load_params
from trl.models import build_model
from trl.regions import Background
from trl.threat import Linf, build_threat

ROOT = Path(__file__).parents[2]
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


@pytest.fixture
def raw() -> Any:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_shipped_params_are_valid_and_complete() -> None:
    params = load_params(ROOT / "params.yaml")
    expected = {"digits", "mnist", "mnist_cpu", "fashion_mnist", "cifar10", "cifar10_resnet18", "tiny_imagenet"}
    assert set(params.recipes) == expected | {"pursuit", "mnist_pursuit", "digits_proxies"}
    for name, recipe in params.recipes.items():
        assert name not in expected or {"um", "at", "alp", "tla", "tla_rn", "tla_sa"} <= set(recipe.methods)
        shape = SHAPES.get(recipe.data.name, (3, 64, 64))
        import torch

        with torch.device("meta"):  # shapes only: no memory for the large ones
            for model in map(recipe.model_of, recipe.methods):
                build_model(model.name, 10, shape, **model.options)


def test_the_papers_constants_are_the_shipped_ones() -> None:
    recipes = load_params(ROOT / "params.yaml").recipes
    for name, expected in {
        "mnist": (0.5, 0.05, 0.001, 50, 0.3, 40, 0.01),
        "cifar10": (2, 0.03, 0.001, 500, 8 / 255, 7, 2 / 255),
        "tiny_imagenet": (0.2, 0.01, 0.001, 50, 8 / 255, 7, 2 / 255),
    }.items():
        recipe = recipes[name]
        tla, attack = recipe.methods["tla"].options, recipe.train.attack.options
        constants = [tla[k] for k in ("lambda1", "margin", "lambda2", "pool")]
        constants += [recipe.threat.epsilon, attack["steps"], attack["step_size"]]
        assert constants == pytest.approx(expected), name


def test_options_left_out_get_their_defaults() -> None:
    recipe = load_params(ROOT / "params.yaml").recipes["digits"]
    assert recipe.methods["tla"].options["positive"] == "other"
    assert recipe.methods["tla_rn"].name == "tla"
    assert recipe.attack.attacks["pgd"].options["random_start"] is True


def test_a_region_is_a_mapping_with_its_defaults(raw: Any) -> None:
    raw["recipes"]["digits"]["threat"]["region"] = {"name": "background"}
    threat = check_params(raw).recipes["digits"].threat
    assert threat.model_dump() == {"norm": "linf", "epsilon": 0.2, "region": {"name": "background", "threshold": 0.1}}
    assert build_threat(**threat.model_dump()) == Linf(0.2).within(Background())
    recipe = check_params(raw, as_written=True).recipes["digits"]
    assert recipe.threat.region == {"name": "background"}
    assert recipe.checked().threat == threat


def test_a_further_threat_is_attacked_by_autoattack_unless_it_says_otherwise(raw: Any) -> None:
    given = {"l2": {"norm": "l2", "epsilon": 2.0}, "quick": {"epsilon": 0.1, "attacks": {"fgsm": {}}}}
    raw["recipes"]["digits"]["attack"]["threats"] = given
    threats = check_params(raw).recipes["digits"].attack.threats
    assert [*threats["l2"].attacks] == ["autoattack"]
    assert threats["l2"].attacks["autoattack"].options["version"] == "standard"
    assert [spec.name for spec in threats["quick"].attacks.values()] == ["fgsm"]


def test_what_is_only_shown_stays_as_it_is_written(raw: Any) -> None:
    params = check_params(raw, as_written=True)
    recipe, whole = params.recipes["cifar10"], check_params(raw).recipes["cifar10"]
    assert recipe.train.attack.options == {"steps": 7, "step_size": "2/255"}
    assert recipe.methods["tla_rn"].name == "tla"
    assert recipe.checked() == whole == whole.checked()
    assert recipe.threat == whole.threat
    with pytest.raises(TrlError, match=r"recipes.digits.train.epochs: should be greater than or equal to 1, not 0"):
        check_params(change(raw, "recipes.digits.train.epochs", 0), as_written=True)


def test_a_methods_weight_perturbation_stands_before_that_of_the_recipe(raw: Any) -> None:
    def gammas() -> list[float | None]:
        recipe = check_params(raw).selected
        found = [recipe.train_of(method).weight_perturbation for method in ("at", "at_awp")]
        return [awp and awp.gamma for awp in found]

    assert gammas() == [None, 0.005]
    change(raw, "recipes.digits.train.weight_perturbation", {"gamma": 0.1})
    assert gammas() == [0.1, 0.005]


def change(raw: Any, path: str, value: Any) -> Any:
    *parents, last = path.split(".")
    section = raw
    for key in parents:
        section = section[key]
    section[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("recipe", "imagenet", "recipe: unknown recipe 'imagenet'; known: digits"),
        ("methods", [], "methods: "),
        ("methods", ["um", "none"], "methods: unknown method 'none'; recipes.digits.methods has um, at"),
        ("methods", ["um", "um"], "methods: contains a value twice"),
        ("seeds", [-1], "seeds.0: should be greater than or equal to 0, not -1"),
        ("seeds", [], "seeds: "),
        ("recepies", {}, "recepies: unknown key; allowed: recipe, methods, seeds, proxies, on_proxies"),
        ("recipes.digits.threat.epsilon", -0.1, "recipes.digits.threat.epsilon: should be greater than or equal to 0"),
        ("recipes.digits.threat.epsilon", "8/0", "recipes.digits.threat.epsilon: should be a valid number"),
        ("recipes.digits.threat.norm", "l0", "recipes.digits.threat.norm: should be 'linf', 'l2' or 'l1', not 'l0'"),
        (
            "recipes.digits.attack.threats",
            {"pgd": {"epsilon": 0.1}},
            "recipes.digits.attack.threats: 'pgd' names another figure: choose another name",
        ),
        (
            "recipes.digits.attack.threats",
            {"two": {"norm": "l2", "epsilon": -1}},
            "recipes.digits.attack.threats.two.epsilon: should be greater than or equal to 0",
        ),
        ("recipes.digits.threat.region", {"name": "sky"}, "recipes.digits.threat.region: unknown region 'sky'; known"),
        ("recipes.digits.threat.region", "border", "recipes.digits.threat.region: needs `name:`, one of background"),
        (
            "recipes.digits.threat.region",
            {"name": "border", "width": 0},
            "recipes.digits.threat.region.width: should be greater than or equal to 1",
        ),
        ("recipes.digits.train.epochs", 0, "recipes.digits.train.epochs: should be greater than or equal to 1, not 0"),
        ("recipes.digits.train.epochs", "many", "recipes.digits.train.epochs: should be a valid integer"),
        ("recipes.digits.train.epochs", 1.5, "recipes.digits.train.epochs: should be a valid integer"),
        ("recipes.digits.train.epoch", 3, "recipes.digits.train.epoch: unknown key; allowed: epochs, batch_size"),
        ("recipes.digits.train.attack", {"name": "pgd", "step": 3}, "recipes.digits.train.attack.step: unknown key"),
        ("recipes.digits.train.attack", {"steps": 3}, "recipes.digits.train.attack: needs `name:`, one of apgd"),
        ("recipes.digits.train.attack", {"attack": "pgd"}, "recipes.digits.train.attack.attack: is called `name` now"),
        (
            "recipes.digits.methods.um",
            {"objective": "natural"},
            "recipes.digits.methods.um.objective: is called `name`",
        ),
        (
            "recipes.digits.attack.attacks.pgd.attack",
            "pgd",
            "recipes.digits.attack.attacks.pgd.attack: is called `name`",
        ),
        ("recipes.digits.train.attack", "pgd", "recipes.digits.train.attack: needs `name:`, one of apgd"),
        ("recipes.digits.train.optimizer.lr", float("nan"), "recipes.digits.train.optimizer.lr: "),
        ("recipes.digits.methods.tla.pool", 1, "recipes.digits.methods.tla.pool: should be greater than or equal to 2"),
        ("recipes.digits.methods.tla.name", "triplet", "recipes.digits.methods.tla: unknown objective 'triplet'"),
        (
            "recipes.digits.methods.tla.lambda",
            1,
            "recipes.digits.methods.tla.lambda: unknown key; allowed: model, weight_",
        ),
        (
            "recipes.digits.methods.at.lambda1",
            1,
            "recipes.digits.methods.at.lambda1: unknown key; allowed: model",
        ),
        ("recipes.digits.methods.at.model", {"name": "vgg"}, "recipes.digits.methods.at.model: unknown model 'vgg'"),
        ("recipes.digits.methods.at.model", {"width": 8}, "recipes.digits.methods.at.model: needs `name:`, one of"),
        ("recipes.digits.methods.at.model", {"name": "mlp", "depth": 0}, "recipes.digits.methods.at.model.depth: "),
        (
            "recipes.digits.methods.at_awp.weight_perturbation",
            {"gamma": 0},
            "recipes.digits.methods.at_awp.weight_perturbation.gamma: should be greater than 0, not 0",
        ),
        (
            "recipes.digits.train.weight_perturbation",
            {"gama": 1},
            "recipes.digits.train.weight_perturbation.gama: unknown key; allowed: gamma, warmup_epochs",
        ),
        ("recipes.digits.methods.new", {}, "recipes.digits.methods.new: unknown objective 'new'"),
        ("recipes.digits.attack.attacks", {}, "recipes.digits.attack.attacks: "),
        ("recipes.digits.attack.attacks.autopgd", {}, "recipes.digits.attack.attacks.autopgd: unknown attack"),
        ("recipes.digits.attack.batch_size", 0, "recipes.digits.attack.batch_size: should be greater than"),
        ("recipes.digits.data.name", "svhn", "recipes.digits.data: unknown data set 'svhn'; known: cifar10, digits"),
        ("recipes.digits.data", {"validation": 150}, "recipes.digits.data: needs `name:`, one of cifar10, digits"),
        ("recipes.digits.data", {"name": "digits"}, "recipes.digits.data.validation: is missing"),
        ("recipes.digits.data.validation", 0, "recipes.digits.data.validation: should be greater than or equal to 1"),
        ("recipes.digits.data.size", 8, "recipes.digits.data.size: unknown key; allowed: validation, split_seed"),
        (
            "recipes.digits.data.options",
            {},
            "recipes.digits.data.options: unknown key; allowed: validation, split_seed",
        ),
        (
            "recipes.digits.data",
            {"name": "image_folder", "path": "data/a", "size": 0, "validation": 1},
            "recipes.digits.data.size: should be greater than or equal to 1, not 0",
        ),
        ("recipes.digits.data.name", "image_folder", "recipes.digits.data.path: is missing"),
        ("recipes.digits.model.name", "vgg", "recipes.digits.model: unknown model 'vgg'"),
        ("recipes.digits.model.width", -5, "recipes.digits.model.width: should be greater than"),
        (
            "recipes.digits.detect.detectors.gaussian.covariance",
            "round",
            "recipes.digits.detect.detectors.gaussian.covariance: ",
        ),
        ("recipes.digits", None, "recipes.digits: should be a valid dictionary"),
        ("proxies", ["kde"], "proxies: unknown proxy 'kde'; recipes.digits.proxies has none"),
        ("on_proxies", ["at"], "on_proxies: 'at' trains on no proxy: list it in methods instead"),
        ("on_proxies", ["no"], "on_proxies: unknown method 'no'; recipes.digits.methods has um, "),
        ("recipes.digits.methods.at", {"proxy": {"from": "kde"}}, "recipes.digits.methods.at.proxy: 'kde' is not"),
        ("recipes.digits_proxies.proxies.kde.count", 0, "recipes.digits_proxies.proxies.kde.count: should be greater"),
        ("recipes.digits_proxies.proxies.kde.select", 0, "recipes.digits_proxies.proxies.kde.select: should be"),
        ("recipes.digits_proxies.proxies.kde.rank", 3, "recipes.digits_proxies.proxies.kde.rank: unknown key"),
        ("recipes.digits_proxies.proxies.other", {"count": 9}, "recipes.digits_proxies.proxies.other: unknown proxy"),
        ("recipes.digits_proxies.methods.at_kde.proxy.gamma", 2, "recipes.digits_proxies.methods.at_kde.proxy.gamma: "),
        ("certify", ["smoothing"], "certify: 'smoothing' is not among methods (um, at, alp, tla)"),
        ("certify", ["um", "um"], "certify: contains a value twice"),
        ("recipes.digits.certify.sigma", 0, "recipes.digits.certify.sigma: should be greater than 0, not 0"),
        ("recipes.digits.certify.alpha", 1, "recipes.digits.certify.alpha: should be less than 1, not 1"),
        ("recipes.digits.certify.samples", 0, "recipes.digits.certify.samples: should be greater than or equal to 1"),
        ("recipes.digits.certify.radii", [], "recipes.digits.certify.radii: "),
        ("recipes.digits.certify.noise", 1, "recipes.digits.certify.noise: unknown key; allowed: sigma, selection"),
    ],
)
def test_a_bad_value_is_one_line_with_its_path(raw: Any, path: str, value: Any, message: str) -> None:
    with pytest.raises(TrlError) as caught:
        check_params(change(raw, path, value), "params.yaml")
    assert str(caught.value).startswith(f"params.yaml: {message}")
    assert "\n" not in str(caught.value)


CROOKED = ("x|touch PWNED|cat", "../../../escaped", "um\n", "-x", "", ".um", "a/b", "a b", "${recipe}", "ümlaut", "a@b")
NAMES = {  # what has the name, and where the error says it is
    "recipes": (lambda p, n: p["recipes"].update({n: p["recipes"]["digits"]}), "recipes"),
    "recipe": (lambda p, n: p.update(recipe=n), "recipe"),
    "methods": (lambda p, n: p.update(methods=[n]), "methods.0"),
    "method": (
        lambda p, n: p["recipes"]["digits"]["methods"].update({n: {"name": "at"}}),
        "recipes.digits.methods",
    ),
    "attack": (
        lambda p, n: p["recipes"]["digits"]["attack"]["attacks"].update({n: {"name": "pgd"}}),
        "recipes.digits.attack.attacks",
    ),
    "adaptive": (
        lambda p, n: p["recipes"]["digits"]["detect"]["adaptive"]["attacks"].update({n: {"name": "pgd"}}),
        "recipes.digits.detect.adaptive.attacks",
    ),
    "detector": (
        lambda p, n: p["recipes"]["digits"]["detect"]["detectors"].update({n: {"name": "knn"}}),
        "recipes.digits.detect.detectors",
    ),
    "data": (lambda p, n: p["recipes"]["digits"]["data"].update(name=n), "recipes.digits.data"),
    "deploy": (lambda p, n: p["deploy"].update(name=n), "deploy.name"),
}


@pytest.mark.parametrize("name", CROOKED)
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_cannot_change_a_path_or_a_command(raw: Any, kind: str, name: str) -> None:
    rename, where = NAMES[kind]
    rename(raw, name)
    for as_written in (False, True):
        with pytest.raises(TrlError) as caught:
            check_params(raw, "params.yaml", as_written=as_written)
        assert str(caught.value).startswith(f"params.yaml: {where}: name {name!r} cannot be used: rename it")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "data"])
def test_a_name_that_yaml_reads_as_something_else_is_to_be_quoted(raw: Any, kind: str) -> None:
    rename, where = NAMES[kind]
    for name in yaml.safe_load("[5, null, no, 1.5]"):
        changed = deepcopy(raw)
        rename(changed, name)
        with pytest.raises(TrlError) as caught:
            check_params(changed)
        assert str(caught.value) == f"params: {where}: name {name!r} is not a string: put it in quotes"


def test_names_of_every_allowed_form_are_kept(raw: Any) -> None:
    methods = raw["recipes"]["digits"]["methods"]
    names = ["5", "_a", "TLA.v2", "tla-0", "a..b"]
    methods |= {name: {"name": "tla"} for name in names}
    assert check_params(raw | {"methods": names}).methods == tuple(names)


@pytest.mark.parametrize("seed", ["0", "0; touch PWNED", 1.0, True, None])
def test_seeds_are_integers_as_dvc_reads_them(raw: Any, seed: Any) -> None:
    with pytest.raises(TrlError, match=r"params: seeds.1: should be a valid integer, not "):
        check_params(raw | {"seeds": [0, seed]})


def test_an_unknown_key_with_a_line_break_is_one_line(raw: Any) -> None:
    with pytest.raises(TrlError, match=r"^params: 'a\\nb': unknown key"):
        check_params(raw | {"a\nb": 1})


def test_a_missing_section_is_named(raw: Any) -> None:
    del raw["recipes"]["mnist"]["threat"]
    with pytest.raises(TrlError, match=r"params: recipes.mnist.threat: is missing"):
        check_params(raw)


def test_methods_on_proxies_have_a_list_of_their_own(raw: Any) -> None:
    raw |= {"recipe": "digits_proxies", "methods": ["at"], "proxies": ["kde", "noise"], "on_proxies": ["at_kde"]}
    assert check_params(raw).compared == ("at", "at_kde")
    with pytest.raises(TrlError, match="methods: 'at_kde' trains on a proxy: list it in on_proxies instead"):
        check_params(raw | {"methods": ["at", "at_kde"]})
    with pytest.raises(TrlError, match="on_proxies: 'at_gaussian' trains on gaussian: list that in proxies, too"):
        check_params(raw | {"on_proxies": ["at_gaussian"]})


def test_only_a_recipe_with_the_section_is_certified(raw: Any) -> None:
    change(raw, "certify", ["um"])
    assert check_params(raw).certify == ("um",)
    del raw["recipes"]["digits"]["certify"]
    with pytest.raises(TrlError, match=r"certify: recipes.digits has no section certify: add one, or set certify to"):
        check_params(raw)


def test_a_data_set_has_options(raw: Any) -> None:
    data = {"name": "image_folder", "path": "data/flowers", "size": "32", "validation": 150}
    params = check_params(change(raw, "recipes.digits.data", data))
    assert params.selected.data.options == {"path": "data/flowers", "size": 32}
    assert (params.selected.data.validation, params.selected.data.split_seed) == (150, 0)
    assert params.selected.checked() == params.selected
    assert check_params(raw, as_written=True).selected.checked() == params.selected
    assert data == {"name": "image_folder", "path": "data/flowers", "size": "32", "validation": 150}


def test_a_method_may_name_its_own_model(raw: Any) -> None:
    change(raw, "recipes.digits.methods.at", {"model": {"name": "mlp", "width": "64"}})
    recipe = check_params(raw).selected
    assert recipe.model_of("at").options == recipe.model.options | {"width": 64}
    assert recipe.model_of("alp") is recipe.model
    assert recipe.methods["at"].options == {}
    assert recipe.methods["at"].model_dump()["model"] == recipe.model_of("at").model_dump()
    assert recipe.methods["um"].model_dump() == {"name": "natural", "options": {}}
    shown = check_params(raw, as_written=True).selected
    assert shown.model_of("at").options == {"width": "64"}
    assert shown.checked() == recipe == recipe.checked()


def test_fractions_are_numbers(raw: Any) -> None:
    params: Params = check_params(change(raw, "recipes.digits.threat.epsilon", "8/255"))
    assert params.selected.threat.epsilon == 8 / 255


def test_files_that_are_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(TrlError, match=r"cannot be read .*run from the project's root"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("recipe: [digits")
    with pytest.raises(TrlError, match="not valid YAML") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)
