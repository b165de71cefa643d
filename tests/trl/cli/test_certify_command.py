"""The command: its figures are those of `certify`, its errors are one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import trl.evaluation
from trl.cli.certify import main
from trl.evaluation import certify

SIZES = ["--samples", "60", "--selection", "10"]
SOURCES = ["--model", "mine:make", "--data", "data.safetensors"]
MINE = """
import torch
from torch import nn
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_DEVICE", "cpu")
    Path("mine.py").write_text(MINE)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {"images": torch.rand(9, 1, 2, 2, generator=generator), "labels": torch.arange(9) % 3}, "data.safetensors"
    )
    return tmp_path


def test_the_figures_are_those_of_certify(capsys: pytest.CaptureFixture[str]) -> None:
    written = ["--out", "new/result.json", "--save-certificates", "found.safetensors", "--state", "kept"]
    options = ["--sigma", "0.2", *SIZES, "--images", "7", "--seed", "3", "--alpha", "0.01", "--batch-size", "50"]
    assert main([*SOURCES, *options, *written]) == 0
    result = json.loads(Path("new/result.json").read_text())
    data = load_file("data.safetensors")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    settings = {"selection": 10, "samples": 60, "seed": 3, "alpha": 0.01, "batch_size": 50}
    found = certify(model, data["images"][:7], data["labels"][:7], 0.2, **settings)
    assert result.items() >= found.result().content().items()
    radii = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert [point["radius"] for point in result["certified"]] == pytest.approx(radii)
    assert result["certified"][1]["accuracy"] == float(found.correct(0.1).double().mean())
    assert torch.equal(load_file("found.safetensors")["radii"], found.radii)
    assert result["data"]["samples"] == 7
    assert (result["seed"], result["device"]) == (3, "cpu")
    out, err = capsys.readouterr()
    assert out == ""
    first = result["certified"][0]
    assert f"{100 * first['accuracy']:.2f}  {100 * first['low']:6.2f}–{100 * first['high']:5.2f}" in err
    assert "noise   sigma 0.2, 60 draws per image, alpha 0.01" in err


def test_radii_of_choice_and_json_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SOURCES, "--sigma", "0.2", *SIZES, "--radius", "0.3", "--radius", "0.05"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [point["radius"] for point in result["certified"]] == [0.05, 0.3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sigma", "0"], "sigma is 0.0: give the noise's standard deviation, above 0, such as 0.25"),
        (["--sigma", "nan"], "sigma is nan"),
        (["--sigma", "1", "--alpha", "1"], "alpha is 1.0: give a probability between 0 and 1"),
        (["--sigma", "1", "--samples", "0"], "samples is 0: give at least 1 draw of noise"),
        (["--sigma", "1", "--images", "0"], "--images 0: give at least 1"),
        (["--sigma", "1", "--radius", "-1"], "--radius -1.0: give a number of at least 0"),
        (["--sigma", "1", "--out", "."], ".: cannot be written"),
        (["--sigma", "1", "--save-certificates", "."], ".: cannot be written"),
        (["--sigma", "1", "--data", "cats"], "unknown data set 'cats'"),
    ],
)
def test_errors_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SOURCES, *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trl.evaluation, "certify", stopped)
    arguments = [*SOURCES, "--sigma", "0.5", "--state", "kept"]
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"interrupted; to resume: python -m trl.cli.certify {' '.join(arguments)}\n"
