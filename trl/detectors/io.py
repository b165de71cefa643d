"""Save and load detectors: `detector.safetensors`, and `detector.json` with the threshold; nothing is unpickled."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save

from trl.common.arrays import read_safetensors
from trl.common.errors import TrlError
from trl.common.files import write_atomic, write_json
from trl.detectors.base import Detector
from trl.detectors.build import build_detector
from trl.detectors.calibration import Calibration
from trl.registry import explain

LEARNT = "detector.safetensors"
CONFIG = "detector.json"


class Config(BaseModel):
    """detector.json: how the detector was built and calibrated, and the hash of its model's weights."""

    model_config = ConfigDict(extra="forbid")

    name: str
    options: dict[str, Any]
    calibration: Calibration
    weights: str


def save_detector(detector: Detector, calibration: Calibration, weights: str, folder: str | Path) -> None:
    """Write a fitted detector and its threshold to `folder`; the same content gives the same bytes.

    `weights`: `weights_sha256` of the model whose embeddings it was fitted to. TrlError: the detector is not fitted or
    was not made by `build_detector`, or the files cannot be written.
    """
    if not detector.config or not hasattr(detector, "width"):
        raise TrlError(f"cannot save this {type(detector).__name__}: make it with build_detector and fit it first")
    learnt = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    write_atomic(Path(folder) / LEARNT, save(learnt))
    config = {**detector.config, "calibration": calibration._asdict(), "weights": weights}
    write_json(Path(folder) / CONFIG, config)


def load_detector(
    folder: str | Path, device: str | torch.device = "cpu", weights: str | None = None
) -> tuple[Detector, Calibration]:
    """The detector that `save_detector` wrote to `folder`, on `device`, and its threshold.

    TrlError: a file is missing or damaged, the two files do not match, or it belongs to other model `weights`.
    """
    folder = Path(folder)
    try:
        config = Config.model_validate_json((folder / CONFIG).read_bytes())
        detector = build_detector(config.name, **config.options)
    except OSError as error:
        raise TrlError(f"{folder / CONFIG}: cannot be read ({error.strerror}); run the detect stage") from None
    except ValidationError as error:
        raise TrlError(f"{folder / CONFIG}: damaged ({explain(error, Config)}); run the detect stage again") from None
    except (TrlError, TypeError) as error:  # TypeError: an option named like an argument, such as `name`
        raise TrlError(f"{folder / CONFIG}: {error}") from None
    if weights is not None and config.weights != weights:
        raise TrlError(f"{folder}: the detector was fitted to another model; run the detect stage again")
    learnt = read_safetensors(folder / LEARNT)
    try:
        detector.restore(learnt)
    except TrlError as error:
        raise TrlError(
            f"{folder / LEARNT}: not the parameters of a {config.name} detector: {error}; run the detect stage again"
        ) from None
    return detector.to(device).eval(), config.calibration
