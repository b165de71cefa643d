"""The stage on a small network: its file says what was found under the recipe's threat and under further ones."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from benchmarks.tiny import TINY
from tasks.attack import attack_model
from tasks.metrics import attack_metrics
from tasks.paths import RecipePaths
from tasks.stage import Stage
from tests.helpers import ROOT
from trl.config import load_params
from trl.data import load_dataset, save_splits, split
from trl.models import build_model, save_model, weights_sha256
from trl.results import AttackResult, TrainResult

PATHS = RecipePaths("digits").model("um", 0)
BACKGROUND = {"name": "background", "threshold": 0.1}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    splits = split(load_dataset("digits"), validation=150, seed=0)
    save_splits(splits, RecipePaths("digits").data)
    torch.manual_seed(0)
    model = build_model("mlp", 10, (1, 8, 8), width=16, depth=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(splits.train.images / 255), splits.train.labels).backward()
        optimizer.step()
    save_model(model.eval(), PATHS.model)
    figures = {"val_clean": 0.9, "val_robust": 0.0, "best_epoch": 1, "epochs": 1, "seconds": 1.0}
    TrainResult(**figures, parameters=1, device="cpu", weights=weights_sha256(PATHS.model)).write(PATHS.metrics)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe = params["recipes"]["digits"]
    recipe.update(deepcopy(TINY), threat={"norm": "linf", "epsilon": 0.1})
    local = {"epsilon": 0.1, "region": BACKGROUND, "attacks": {"pgd": {"steps": 3}}}
    recipe["attack"]["threats"] = {
        "local": local,
        "l2": {"norm": "l2", "epsilon": 0.5, "attacks": {"pgd": {"steps": 3}}},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return Stage(load_params("params.yaml"), "digits", "um", 0)


def test_each_threat_has_its_own_worst_case(stage: Stage) -> None:
    attack_model(stage)
    found = AttackResult.read(PATHS.metrics)
    assert (found.threats["local"].norm, found.threats["local"].region) == ("linf", BACKGROUND)
    assert found.threats["l2"].epsilon == 0.5
    whole = found.robust["worst"].accuracy
    local, l2 = (found.threats[name].robust["worst"].accuracy for name in ("local", "l2"))
    assert whole < local < found.clean.accuracy
    assert found.union is not None
    assert found.union.accuracy <= min(whole, local, l2)
    metrics = attack_metrics(found)
    assert metrics["robust/local/worst"] == metrics["robust/local/pgd"] == local
    assert metrics["robust/union"] == found.union.accuracy
    stored = load_file(PATHS.adversarials / "adversarials.safetensors")
    assert float(stored["correct.pgd"].double().mean()) == found.robust["pgd"].accuracy  # of the recipe's threat


def test_without_further_threats_there_is_no_union(stage: Stage) -> None:
    stage.recipe.attack.threats.clear()
    attack_model(stage)
    assert "threats" not in json.loads((PATHS.metrics / "attack.json").read_text())
    assert AttackResult.read(PATHS.metrics).union is None
