"""Save and load models: `model.safetensors` and `config.json`; nothing is ever unpickled."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.common.files import write_atomic, write_json
from trl.models.base import Classifier, Shape
from trl.models.build import build_model
from trl.nn.wrappers import unwrapped
from trl.registry import explain

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class Config(BaseModel):
    """The arguments of `build_model`, as stored in config.json."""

    model_config = ConfigDict(extra="forbid")

    name: str
    classes: int
    shape: Shape
    options: dict[str, Any]


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Write weights and config to `folder`, each file atomically; the same weights give the same bytes.

    Saves the model inside wrappers (see `unwrapped`).
    TrlError: the model was not made by `build_model`, or the files cannot be written.
    """
    inner = unwrapped(model)
    if not isinstance(inner, Classifier) or not inner.config:
        raise TrlError(f"cannot save a {type(model).__name__}: make the model with build_model")
    # a submodule may be compiled separately
    weights = {k.replace("_orig_mod.", ""): v.detach().cpu().contiguous() for k, v in inner.state_dict().items()}
    write_atomic(Path(folder) / WEIGHTS, save(weights))
    write_json(Path(folder) / CONFIG, inner.config)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """The model that `save_model` wrote to `folder`, on `device` and in eval mode.

    TrlError: a file is missing or damaged, weights and config do not match, or a weight is not finite.
    """
    folder = Path(folder)
    config, weights = _read_config(folder / CONFIG), _read_weights(folder / WEIGHTS)
    try:
        with torch.random.fork_rng(devices=[]):  # initialising weights must not advance the caller's generator
            model = build_model(config.name, config.classes, config.shape, **config.options)
    except (TrlError, TypeError) as error:  # TypeError: an option named like an argument, such as `classes`
        raise TrlError(f"{folder / CONFIG}: {error}") from None
    _check_weights(folder / WEIGHTS, model.state_dict(), weights)
    model.load_state_dict(weights)
    return model.to(device).eval()


def weights_sha256(folder: str | Path) -> str:
    """The SHA-256 of the weights file of a model saved in `folder`, which identifies the model."""
    return hashlib.sha256((Path(folder) / WEIGHTS).read_bytes()).hexdigest()


def _read_config(path: Path) -> Config:
    try:
        return Config.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror}); train the model first") from None
    except ValidationError as error:
        raise TrlError(f"{path}: damaged ({explain(error, Config)}); restore it or train again") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise TrlError(f"{path}: cannot be read ({error.strerror}); train the model first") from None
    except SafetensorError as error:
        raise TrlError(f"{path}: damaged ({error}); restore it or train again") from None


def _check_weights(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for key in [*expected, *found]:
        wanted, given = _describe(expected.get(key)), _describe(found.get(key))
        if wanted != given:
            raise TrlError(f"{path}: does not match {CONFIG} at {key!r}: expected {wanted}, found {given}; train again")
        if not found[key].isfinite().all():
            raise TrlError(f"{path}: {key!r} holds NaN or infinite values; train again with a smaller learning rate")


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
