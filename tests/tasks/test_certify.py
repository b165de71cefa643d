"""The stage on a small network, and that DVC has it only where it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tasks.certify import certify_model
from tasks.paths import RecipePaths
from tasks.stage import Stage
from tests.helpers import ROOT
from trl.common.errors import TrlError
from trl.config import load_params
from trl.data import load_dataset, save_splits, split
from trl.evaluation import certify
from trl.models import build_model, save_model
from trl.results import CertifiedPoint, CertifyResult

PATHS = RecipePaths("digits").model("um", 0)
SECTION = {"sigma": 0.1, "selection": 10, "samples": 50, "images": 12, "radii": [0.1, 0]}


def write_params(**certified: object) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["recipes"]["digits"].update(certified)
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    save_splits(split(load_dataset("digits"), validation=150, seed=0), RecipePaths("digits").data)
    torch.manual_seed(0)
    save_model(build_model("mlp", 10, (1, 8, 8), width=16, depth=1).eval(), PATHS.model)
    write_params(certify=SECTION)
    return Stage(load_params(), "digits", "um", 0)


def test_the_files_say_what_the_function_found(stage: Stage) -> None:
    certify_model(stage)
    from trl.data import load_splits
    from trl.models import load_model

    test = load_splits(RecipePaths("digits").data).test
    settings = {"selection": 10, "samples": 50, "alpha": 0.001}
    found = certify(load_model(PATHS.model), test.images[:12], test.labels[:12], 0.1, **settings)
    assert CertifyResult.read(PATHS.metrics) == found.result()
    assert [point.radius for point in CertifiedPoint.read(PATHS.metrics)] == [0.0, 0.1]
    assert CertifiedPoint.read(PATHS.metrics) == found.curve((0.0, 0.1))
    stored = load_file(PATHS.certificates / "certificates.safetensors")
    for name in ("predictions", "radii", "labels"):
        assert torch.equal(stored[name], getattr(found, name))
    assert not Path("checkpoints/digits/um-0-certify").exists()


def test_a_recipe_without_the_section_is_one_line(stage: Stage) -> None:
    write_params(certify=None)
    with pytest.raises(TrlError, match=r"recipes.digits of params.yaml has no section certify: add one"):
        certify_model(Stage(load_params(), "digits", "um", 0))


@pytest.mark.parametrize("certified", [[], ["um", "tla"]])
def test_the_graph_has_the_stage_for_the_models_on_the_list_alone(tmp_path: Path, certified: list[str]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"certify": certified, "seeds": [0, 1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    for command in (("init", "--no-scm", "-q"), ("stage", "list", "--name-only")):
        done = subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    stages = done.stdout.split()
    assert "attack@digits-um-0" in stages
    found = [name for name in stages if name.startswith("certify")]
    assert sorted(found) == sorted(f"certify@digits-{method}-{seed}" for method in certified for seed in (0, 1))
