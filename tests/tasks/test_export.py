import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from tasks.export import export
from tasks.prepare import prepare
from tasks.stage import run_stage
from tests.helpers.synthetic_results import write_model
from trl.models import build_model, load_model, save_model

PARAMS = Path(__file__).parents[2] / "params.yaml"
COMMAND = ["--recipe", "digits", "--method", "tla", "--seed", "0", "--out", "handed/on"]


def run() -> int:
    return run_stage(export, per_model=True, paths={"out": "the folder to write"}, arguments=COMMAND)


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each thing that is missing is named, then the folder is written."""

    def refused(*words: str) -> None:
        assert run() == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert all(word in error for word in words), error
        assert not Path("handed").exists()

    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load(PARAMS.read_text())
    params["recipes"]["digits"]["methods"]["tla"]["model"] = {"name": "strided_cnn"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    refused("metrics/digits/tla-0/training.csv", "run the train stage")
    write_model(Path("metrics/digits/tla-0"), "tla", 0)
    refused("outputs/digits/tla-0/model/config.json", "train the model first")
    torch.manual_seed(0)
    model = build_model("strided_cnn", 10, (1, 8, 8)).eval()
    save_model(model, "outputs/digits/tla-0/model")
    refused("metrics/digits/tla-0", "measured on other weights", "dvc repro")
    figures = Path("metrics/digits/tla-0/train.json")
    weights = hashlib.sha256(Path("outputs/digits/tla-0/model/model.safetensors").read_bytes()).hexdigest()
    figures.write_text(json.dumps(json.loads(figures.read_text()) | {"weights": weights}))
    refused("outputs/digits/data/data.json is missing", "prepare")
    assert run_stage(prepare, per_model=False, arguments=["--recipe", "digits"]) == 0

    assert run() == 0
    assert "digits_tla_0: handed/on/README.md" in capsys.readouterr().out
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(load_model("handed/on")(x), model(x))
    card = Path("handed/on/README.md").read_text()
    assert weights in card
    assert "`strided_cnn`" in card
    assert "mlp" not in card
    assert json.loads(Path("outputs/digits/data/data.json").read_text())["sha256"] in card
