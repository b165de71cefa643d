"""What a checkpoint belongs to."""

from pathlib import Path

import pytest

from tasks.fingerprint import fingerprint
from tasks.stage import Stage
from trl.config import load_params

ROOT = Path(__file__).parents[2]


def stage(method: str = "tla", seed: int = 0) -> Stage:
    return Stage(load_params(ROOT / "params.yaml"), "digits", method, seed)


def name(stage: Stage, data: str) -> str:
    return fingerprint("train", stage, ("model", "threat", "train", "methods"), data)


def test_a_checkpoint_belongs_to_parameters_data_code_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    same = name(stage(), "data")
    assert name(stage(), "data") == same
    found = {same, *(name(*given) for given in ((stage("at"), "data"), (stage(seed=1), "data"), (stage(), "")))}
    for function in ("source_digest", "versions"):
        with monkeypatch.context() as patch:
            patch.setattr(f"trl.common.code_version.{function}", lambda *modules: "changed")
            found.add(name(stage(), "data"))
    assert len(found) == 6


def test_its_code_is_that_of_what_the_recipe_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr("trl.common.code_version.source_digest", lambda *modules: seen.append(set(modules)))
    for method in ("tla", "at"):
        name(stage(method), "data")
    assert {"trl.training.train", "trl.models.mlp", "trl.attacks.pgd"} < seen[0] & seen[1]
    assert (seen[0] - seen[1], seen[1] - seen[0]) == ({"trl.objectives.tla"}, {"trl.objectives.at"})
