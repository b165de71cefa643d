"""A trained model as one folder to hand on: weights without code, a model card, and what RobustBench looks for."""

import io
from pathlib import Path
from typing import Any

import torch

from trl.common.files import write_atomic, write_json
from trl.models import Classifier, save_model
from trl.report.card import ModelFacts, model_card
from trl.report.table import show_epsilon
from trl.results import WORST

THREATS = {"linf": "Linf", "l2": "L2"}  # as RobustBench writes them


def export_model(model: Classifier, folder: str | Path, facts: ModelFacts) -> None:
    """Write everything about `model` to `folder`, each file whole or not at all; the same model gives the same bytes.

    `README.md` is the model card; `model.safetensors` and `config.json` are what `load_model(folder)` reads;
    `models/<data>/<threat>/<name>.pt` holds the same weights where RobustBench's `load_model(model_dir=…)` looks, a
    state dict of plain tensors that `torch.load(…, weights_only=True)` reads; `model_info/…` is its entry there.
    TrlError: a file cannot be written.
    """
    folder = Path(folder)
    save_model(model, folder)
    place = Path(facts.parameters["data"]["name"], _threat(facts))
    weights = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, weights)
    checkpoint = Path("models", place, f"{facts.name}.pt")
    write_atomic(folder / checkpoint, weights.getvalue())
    write_json(folder / "model_info" / place / f"{facts.name}.json", model_info(facts))
    write_atomic(folder / "README.md", model_card(facts, model.config, str(checkpoint)).encode())


def model_info(facts: ModelFacts) -> dict[str, Any]:
    """RobustBench's description of a model. Its paper is for the submitter to fill in; accuracies are in percent.

    `autoattack_acc` is there only if AutoAttack's standard version was among the attacks.
    """
    attack, parameters = facts.results.attack, facts.parameters
    standard = [
        name
        for name, spec in parameters["attack"]["attacks"].items()
        if spec["name"] == "autoattack" and spec["options"]["version"] == "standard" and name in attack.robust
    ]
    return {
        "link": "",
        "name": facts.name,
        "authors": "",
        "additional_data": False,  # no recipe trains on anything but its data set
        "number_forward_passes": 1,
        "dataset": parameters["data"]["name"],
        "venue": "",
        "architecture": parameters["model"]["name"],
        "eps": show_epsilon(attack.epsilon),
        "clean_acc": f"{100 * attack.clean.accuracy:.2f}",
        "reported": f"{100 * attack.robust[WORST].accuracy:.2f}",
        **({"autoattack_acc": f"{100 * attack.robust[standard[0]].accuracy:.2f}"} if standard else {}),
    }


def _threat(facts: ModelFacts) -> str:
    norm = facts.parameters["threat"]["norm"]
    return THREATS.get(norm, norm)
