"""What the stages leave of a trained model, for tests of what comes after them: written, not measured."""

import json
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from tasks.paths import RecipePaths
from tests.helpers.synthetic_results import write_model
from trl.data import load_splits
from trl.detectors import build_detector, calibrate, save_detector
from trl.detectors.observe import embed
from trl.models import build_model, save_model, weights_sha256


def write_deployable(method: str, seed: int = 0, *, steps: int = 0, **validation: float) -> None:
    """A small network after `steps` of training on the prepared digits, its detector, and figures of `validation`."""
    paths = RecipePaths("digits").model(method, seed)
    splits = load_splits(RecipePaths("digits").data)
    torch.manual_seed(sum(map(ord, method)) + seed)
    model = build_model("mlp", 10, (1, 8, 8), width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(splits.train.images / 255), splits.train.labels).backward()
        optimizer.step()
    save_model(model.eval(), paths.model)
    weights = weights_sha256(paths.model)
    detector = build_detector("gaussian").fit(embed(model, splits.train.images)[0], splits.train.labels)
    calibration = calibrate(detector.score(embed(model, splits.validation.images)[0]), 0.05)
    save_detector(detector, calibration, weights, paths.detector)

    write_model(paths.metrics, method, seed)
    rewrite(paths.metrics / "train.json", weights=weights)
    figures = json.loads((paths.metrics / "detect.json").read_text())
    figures["detectors"]["gaussian"]["threshold"] = calibration.threshold
    rewrite(paths.metrics / "detect.json", **figures | {"validation": figures["validation"] | validation})


def rewrite(path: Path, **values: object) -> None:
    """Change some values of a file of results."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
