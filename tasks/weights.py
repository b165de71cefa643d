"""Whether a model's weights are those that its results speak of."""

from tasks.paths import ModelPaths
from trl.common.errors import TrlError


def check_weights(paths: ModelPaths) -> str:
    """The SHA-256 of the weights, as train.json has it; TrlError if it has another, or if a file is missing."""
    from trl.models import weights_sha256
    from trl.results import TrainResult

    weights = weights_sha256(paths.model)
    if TrainResult.read(paths.metrics).weights != weights:
        raise TrlError(f"{paths.metrics}: measured on other weights than {paths.model} holds; run `dvc repro`")
    return weights
