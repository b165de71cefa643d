"""The model card: who may use a trained model for what, how it was made and what was measured, for people and hubs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trl.report.page import NORMS
from trl.report.table import NOTHING, show_epsilon
from trl.results import ADAPTIVE, WORST, Accuracy, DetectorFigures, Figure, ModelResults, Subsets


@dataclass(frozen=True)
class ModelFacts:
    """What is known of one trained model: its `name`, what it was made from, and what was measured on it.

    `parameters` is the recipe as a mapping with all defaults filled in, `data` the SHA-256 of the prepared data.
    """

    name: str
    recipe: str
    parameters: Mapping[str, Any]
    data: str
    results: ModelResults


def model_card(facts: ModelFacts, config: Mapping[str, Any], checkpoint: str) -> str:
    """The card as Markdown with the YAML header of the Hugging Face Hub.

    `config` holds the arguments of `build_model`, `checkpoint` is the path of the weights as a state dict.
    """
    results, parameters = facts.results, facts.parameters
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made = {key: parameters[key] for key in ("data", "model", "threat", "train")}
    made |= {"method": {results.method: parameters["methods"][results.method]}}
    made |= {key: parameters[key] for key in ("attack", "detect")}
    options = "".join(f", {name}={value!r}" for name, value in config["options"].items() if value != ())
    return environment.get_template("card.md.jinja").render(
        facts=facts,
        results=results,
        header=_yaml(_header(facts)),
        data=parameters["data"]["name"],
        norm=NORMS.get(parameters["threat"]["norm"], parameters["threat"]["norm"]),
        epsilon=show_epsilon(results.attack.epsilon),
        detection_epsilon=show_epsilon(results.detect.epsilon),
        accuracies=_accuracies(results),
        detector=results.detect.deployed,
        detection=_detection(results.detect.deployed),
        build=f'build_model("{config["name"]}", {config["classes"]}, {tuple(config["shape"])}{options})',
        shape=", ".join(map(str, config["shape"])),
        classes=config["classes"],
        checkpoint=checkpoint,
        recipe=_yaml(made),
        percent=_percent,
        estimate=_estimate,
    )


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.2f}"


def _estimate(figure: Accuracy | Figure | None) -> str:
    return f"{_percent(figure.value)} ({_percent(figure.low)}–{_percent(figure.high)})" if figure else NOTHING


def _detection(detector: DetectorFigures) -> dict[str, tuple[Subsets, Accuracy]]:
    """By attack: how well it is detected, and the accuracy with rejection that it leaves."""
    static = {attack: (subsets, detector.rejection.static[attack]) for attack, subsets in detector.static.items()}
    return {**static, ADAPTIVE: (detector.adaptive, detector.rejection.worst)}


def _accuracies(results: ModelResults) -> dict[str, Accuracy]:
    """By what the images are: as they are, under each attack, under the worst of them."""
    robust = results.attack.robust
    attacks = {name: figures for name, figures in robust.items() if name != WORST}
    return {"clean": results.attack.clean, **attacks, WORST: robust[WORST]}


def _header(facts: ModelFacts) -> dict[str, Any]:
    name, epsilon = facts.parameters["data"]["name"], show_epsilon(facts.results.attack.epsilon)
    metrics = [
        {
            "type": "accuracy",
            "name": images if images == "clean" else f"{images}, {facts.parameters['threat']['norm']} {epsilon}",
            "value": figures.accuracy,
        }
        for images, figures in _accuracies(facts.results).items()
    ]
    found = {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": name, "split": "test"},
        "metrics": metrics,
    }
    return {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", facts.results.method],
        "model-index": [{"name": facts.name, "results": [found]}],
    }


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
