"""Stage prepare on one's own images, from params.yaml to a trained model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.tiny import TINY
from tasks.prepare import WATCHED, prepare
from tasks.stage import run_stage
from tasks.train import train_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose only recipe is for the images in data/shapes: dark ones and bright ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_DEVICE", "cpu")
    draw = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 10)):
        for name, low in (("bright", 128), ("dark", 0)):
            (tmp_path / "data/shapes" / part / name).mkdir(parents=True)
            for n in range(count):
                image = draw.integers(low, low + 128, (10, 12), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / "data/shapes" / part / name / f"{n}.png")
    write_params(tmp_path)
    return tmp_path


def write_params(project: Path, **data: Any) -> None:
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe = params["recipes"]["digits"] | TINY | {"train": TINY["train"] | {"epochs": 15, "batch_size": 20}}
    recipe["data"] = {"name": "image_folder", "path": "data/shapes", "size": 8, "validation": 20} | data
    (project / "params.yaml").write_text(yaml.safe_dump(params | {"recipe": "shapes", "recipes": {"shapes": recipe}}))


def prepared() -> int:
    return run_stage(prepare, per_model=False, arguments=[])


@pytest.mark.e2e  # it makes an MLflow store
def test_images_of_ones_own_are_prepared_and_trained_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared() == 0
    sizes = "100 training, 20 validation, 20 test images of 1x8x8 in 2 classes"
    assert f"image_folder: {sizes}" in capsys.readouterr().out
    assert run_stage(train_model, per_model=True, arguments=["--method", "um"]) == 0
    figures = json.loads((project / "metrics/shapes/um-0/train.json").read_text())
    assert figures["val_clean"] > 0.9


def test_the_prepared_data_follow_the_files_and_nothing_else(project: Path) -> None:
    def found() -> str:
        assert prepared() == 0
        return str(json.loads((project / "outputs/shapes/data/data.json").read_text())["sha256"])

    before, file = found(), project / "data/shapes/train/dark/0.png"
    file.touch()
    assert found() == before
    write_params(project, path=str(project / "data/shapes"))
    assert found() == before
    Image.new("L", (10, 12), 7).save(file)
    assert found() != before


def test_a_folder_that_dvc_does_not_watch_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> str:
        assert prepared() == 1
        return capsys.readouterr().err

    outside = project / "elsewhere"
    shutil.move(project / "data/shapes", outside)
    for path in ("elsewhere", str(outside), "data/../elsewhere"):
        write_params(project, path=path)
        error = f"error: recipes.shapes.data.path: {path} is not in the project's folder data"
        assert refused().startswith(error)

    write_params(project)
    assert refused().startswith("error: data/shapes: no such folder")
    (project / "data/shapes").symlink_to(outside)
    assert "is not in the project's folder data" in refused()
    (project / "data/shapes").unlink()
    (project / "data/shapes").mkdir()
    for part in ("train", "test"):
        (project / "data/shapes" / part).symlink_to(outside / part)
    assert "a link to a folder, in which DVC notices no change" in refused()


def test_dvc_watches_the_folder_of_images() -> None:
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert WATCHED in stages["prepare"]["deps"]
