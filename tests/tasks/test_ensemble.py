"""The stage ensemble on small networks: what it writes is what its code finds, and bad names are one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.tiny import TINY
from tasks.ensemble import attack_ensemble
from tasks.metrics import ensemble_metrics
from tasks.paths import RecipePaths
from tasks.stage import Stage
from tests.helpers import ROOT
from trl.common.errors import TrlError
from trl.config import check_params, load_params
from trl.data import load_dataset, save_splits, split
from trl.evaluation.together import attack_together, paired
from trl.models import build_model, save_model
from trl.results import EnsembleResult
from trl.threat import Linf

PATHS = RecipePaths("digits")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The shipped parameters, changed for two small ensembles; the workplace holds data and untrained models."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["recipes"]["digits"] |= TINY
    raw |= {"methods": ["um", "at"], "seeds": [0, 1], "ensembles": ["two"]}
    raw["recipes"]["digits"]["ensembles"] = {"two": {"methods": ["um", "at"], "samples": 40, "steps": 5}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    save_splits(split(load_dataset("digits"), validation=150, seed=0), PATHS.data)
    for i, (method, seed) in enumerate((m, s) for m in ("um", "at") for s in (0, 1)):
        torch.manual_seed(i)
        save_model(build_model("mlp", 10, (1, 8, 8), width=16, depth=1), PATHS.model(method, seed).model)
    return raw


def test_it_writes_the_shares_of_every_seed(params: dict[str, Any]) -> None:
    attack_ensemble(Stage(load_params(), "digits"), "two")
    result = EnsembleResult.read(PATHS.ensemble("two"))
    assert result.methods == ["um", "at"]
    assert list(result.seeds) == [0, 1]
    for found in result.seeds.values():
        assert found.n == 40
        assert found.minmax.all.value >= found.clean.all.value
        assert found.minmax.all.value <= min(share.value for share in found.minmax.each.values())
        assert sum(found.weights.values()) == pytest.approx(1, abs=1e-5)
        assert found.gain.value == pytest.approx(found.minmax.all.value - found.average.all.value)
    logged = ensemble_metrics("two", result)
    assert logged["ensemble/two/minmax"] == pytest.approx(sum(f.minmax.all.value for f in result.seeds.values()) / 2)
    assert {"ensemble/two/gain", "ensemble/two/weight/um", "ensemble/two/average/at"} <= logged.keys()


def test_an_unknown_ensemble_and_methods_that_do_not_run_are_one_line(params: dict[str, Any]) -> None:
    with pytest.raises(TrlError, match=r"unknown ensemble 'three'; recipes.digits.ensembles has two"):
        attack_ensemble(Stage(load_params(), "digits"), "three")
    for changes, message in (
        ({"ensembles": ["three"]}, "ensembles: unknown ensemble 'three'; recipes.digits.ensembles has two"),
        ({"methods": ["um"]}, "ensembles: 'two' needs at in `methods`, too"),
        ({"ensembles": ["two", "two"]}, "ensembles: contains a value twice"),
        ({"recipe": "cifar10"}, "ensembles: unknown ensemble 'two'; recipes.cifar10.ensembles has none"),
    ):
        with pytest.raises(TrlError, match=message):
            check_params(params | changes)
    params["recipes"]["digits"]["ensembles"]["two"]["methods"] = ["um"]
    with pytest.raises(TrlError, match=r"recipes.digits.ensembles.two.methods: .*at least 2 items"):
        check_params(params)


def test_shares_do_not_depend_on_the_batches_and_count_what_is_wrong_without_attack() -> None:
    models = {}
    for i, name in enumerate(("a", "b", "c")):
        torch.manual_seed(i)
        models[name] = build_model("mlp", 4, (1, 4, 4), width=16)
    x, y = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8), torch.randint(4, (50,))
    found = attack_together(models, x, y, Linf(0.05), steps=5)
    assert found == attack_together(models, x, y, Linf(0.05), 7, steps=5)
    wrong = torch.stack([model.eval()(x / 255).argmax(1) != y for model in models.values()], 1)
    assert found.clean.all.value == pytest.approx(float(wrong.all(1).float().mean()))
    assert found.clean.each["b"].value == pytest.approx(float(wrong[:, 1].float().mean()))
    with pytest.raises(TrlError, match="at least two domains, not 1"):
        attack_together({"a": models["a"]}, x, y, Linf(0.05))


def test_the_interval_of_a_paired_difference_holds_the_truth() -> None:
    """In about 95 of 100 draws, for shares that go together."""
    torch.manual_seed(0)
    held = 0
    for _ in range(400):
        both, first, second = (torch.rand(200) < share for share in (0.5, 0.1, 0.04))
        found = paired(both | first, both | second)
        held += found.low <= 0.5 * (0.1 - 0.04) <= found.high
    assert 0.92 < held / 400 < 0.98
    same = paired(torch.ones(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool))
    assert (same.value, same.low, same.high) == (0, 0, 0)
