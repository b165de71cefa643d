"""An exported folder: the same model in every form, and a card that says what was measured."""

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers.architectures import NAMES
from tests.helpers.architectures import model as architecture
from tests.helpers.synthetic_results import write_model
from trl.config import load_params
from trl.models import Classifier, build_model, load_model
from trl.report import load_results
from trl.report.card import ModelFacts
from trl.report.export import export_model, model_info

PARAMS = Path(__file__).parents[3] / "params.yaml"


def facts(folder: Path, recipe: str = "digits", method: str = "tla") -> ModelFacts:
    write_model(folder / f"{method}-0", method, 0)
    results = load_results(folder, (method,), (0,)).models[0]
    parameters = load_params(PARAMS).recipes[recipe].model_dump(mode="json")
    return ModelFacts(f"{recipe}_{method}_0", recipe, parameters, "0123abcd", results)


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(1)
    return build_model("mlp", 10, (1, 8, 8), width=16, mean=(0.5,), std=(0.25,)).eval()


@pytest.fixture(scope="module")
def folder(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_model(model, folder / "out", facts(folder))
    return folder


def robustbench_state(checkpoint: Any) -> dict[str, Any]:
    """What RobustBench's `load_model` makes of a checkpoint before it loads it strictly."""
    for prefix in ("module.", "model."):
        checkpoint = OrderedDict((k[len(prefix) :] if prefix in k else k, v) for k, v in checkpoint.items())
    return checkpoint


def test_every_form_is_the_same_model(folder: Path, model: Classifier) -> None:
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(load_model(folder / "out")(x), model(x))
    checkpoint = torch.load(folder / "out/models/digits/Linf/digits_tla_0.pt", weights_only=True)
    again = build_model("mlp", 10, (1, 8, 8), width=16, mean=(0.5,), std=(0.25,)).eval()
    again.load_state_dict(robustbench_state(checkpoint), strict=True)
    assert torch.equal(again(x), model(x))
    assert sorted(str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*") if p.is_file()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "model_info/digits/Linf/digits_tla_0.json",
        "models/digits/Linf/digits_tla_0.pt",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_robustbench_keeps_the_names_of_the_weights(name: str) -> None:
    state = architecture(name).state_dict()
    assert list(robustbench_state(state)) == list(state)


def test_the_same_model_gives_the_same_bytes(folder: Path, model: Classifier) -> None:
    export_model(model, folder / "again", facts(folder))
    for path in (folder / "out").rglob("*"):
        assert path.is_dir() or path.read_bytes() == (folder / "again" / path.relative_to(folder / "out")).read_bytes()


def rows(card: str, heading: str) -> dict[str, list[str]]:
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", section, re.M)]
    return {first: rest for first, *rest in cells[2:]}


def estimate(figure: dict[str, float] | None) -> str:
    return f"{100 * figure['value']:.2f} ({100 * figure['low']:.2f}–{100 * figure['high']:.2f})" if figure else "–"


def test_the_card_says_what_the_files_say(folder: Path) -> None:
    card = (folder / "out/README.md").read_text()
    attack, detect, train = (
        json.loads((folder / f"tla-0/{name}.json").read_text()) for name in ("attack", "detect", "train")
    )
    figures = {"clean": attack["clean"], **attack["robust"]}
    assert rows(card, "Accuracy") == {
        name: [f"{100 * f['accuracy']:.2f}", f"{100 * f['low']:.2f}–{100 * f['high']:.2f}"]
        for name, f in figures.items()
    }
    assert list(rows(card, "Accuracy"))[-1] == "worst"
    detector = detect["detectors"][detect["detector"]]
    subsets = {**detector["static"], "adaptive": detector["adaptive"]}
    kept = {**detector["rejection"]["static"], "adaptive": detector["rejection"]["worst"]}
    assert rows(card, "Detection") == {
        name: [
            *(estimate(found and found["auc"]) for found in subsets[name].values()),
            estimate(kept[name] | {"value": kept[name]["accuracy"]}),
        ]
        for name in ("pgd", "cw", "adaptive")
    }
    assert f"{100 * detector['rejection']['clean']['accuracy']:.2f} (" in card
    assert f"{100 * detector['false_alarms']['value']:.2f} (" in card
    made = rows(card, "How it was made")
    assert made["recipe"] == ["digits"]
    assert made["prepared data, SHA-256"] == ["0123abcd"]
    assert made["weights, SHA-256 of model.safetensors"] == [train["weights"]]
    assert f"ε = {attack['epsilon']} in ℓ∞" in card


def test_what_does_not_exist_is_a_dash_on_the_card(model: Classifier, tmp_path: Path) -> None:
    export_model(model, tmp_path / "out", facts(tmp_path, method="um"))
    card = (tmp_path / "out/README.md").read_text()
    assert [figures[2] for figures in rows(card, "Detection").values()] == ["–", "–", "–"]  # no attack on it fails


def test_the_header_is_what_the_hub_reads(folder: Path) -> None:
    header = yaml.safe_load((folder / "out/README.md").read_text().split("---\n")[1])
    attack = json.loads((folder / "tla-0/attack.json").read_text())
    (found,) = header["model-index"][0]["results"]
    assert header["model-index"][0]["name"] == "digits_tla_0"
    assert found["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    values = {metric["name"].partition(",")[0]: metric["value"] for metric in found["metrics"]}
    assert values == {name: f["accuracy"] for name, f in {"clean": attack["clean"], **attack["robust"]}.items()}


def test_the_recipe_on_the_card_is_one_that_runs(folder: Path) -> None:
    card = (folder / "out/README.md").read_text()
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    parameters = load_params(PARAMS).recipes["digits"].model_dump(mode="json")
    assert recipe.pop("method") == {"tla": parameters["methods"]["tla"]}
    optional = ("methods", "certify", "ensembles", "proxies")
    kept = {key: value for key, value in parameters.items() if key not in optional}
    assert recipe == kept


def test_the_code_on_the_card_runs(folder: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = re.findall(r"```python\n(.*?)```", (folder / "out/README.md").read_text(), re.S)
    monkeypatch.chdir(folder / "out")
    names: dict[str, Any] = {"x": torch.rand(3, 1, 8, 8)}
    exec(first, names)
    assert torch.equal(names["logits"], model(names["x"]))
    exec(second, names)
    assert torch.equal(names["model"].eval()(names["x"]), model(names["x"]))


def test_model_info(folder: Path) -> None:
    """The keys are those that RobustBench's leaderboard reads, its numbers are strings."""
    info = json.loads((folder / "out/model_info/digits/Linf/digits_tla_0.json").read_text())
    attack = json.loads((folder / "tla-0/attack.json").read_text())
    assert info["clean_acc"] == f"{100 * attack['clean']['accuracy']:.2f}"
    assert info["reported"] == f"{100 * attack['robust']['worst']['accuracy']:.2f}"
    assert (info["dataset"], info["architecture"], info["eps"]) == ("digits", "mlp", "0.2")
    assert "autoattack_acc" not in info


def test_autoattack_is_named_only_when_it_was_run(tmp_path: Path) -> None:
    known = facts(tmp_path)
    spec = {"name": "autoattack", "options": {"version": "standard", "parts": []}}
    known.parameters["attack"]["attacks"]["aa"] = spec
    assert "autoattack_acc" not in model_info(known)
    known.results.attack.robust["aa"] = known.results.attack.robust["pgd"]
    assert model_info(known)["autoattack_acc"] == f"{100 * known.results.attack.robust['pgd'].accuracy:.2f}"
    spec["options"] = {"version": "rand", "parts": []}
    assert "autoattack_acc" not in model_info(known)
