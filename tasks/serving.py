"""The detector as MLflow serves it, a "model from code": this file is copied beside the weights and run to load them.

`tasks.deploy` logs it by its path. It imports MLflow and trl only, since trl is what it finds where it is loaded.
"""

import contextlib
import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from trl.common.errors import TrlError
from trl.detection.guard import Guard
from trl.nn.device import choose_device


class Refused(MlflowException):
    """What cannot be judged: HTTP status 400 with our one line, before which MLflow would print the images."""

    def __init__(self, why: str) -> None:
        super().__init__(why, INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        """The response's body."""
        self.message = str(self)
        body: str = super().serialize_as_json()  # type: ignore[no-untyped-call]
        return body


class ServedGuard(PythonModel):
    """`images`, float32 [n,c,h,w] in [0, 1], to a row each: class, probability, adversarial_score and adversarial."""

    def load_context(self, context: Any) -> None:
        """Load the artifacts `model` and `detector`, folders of safetensors and JSON, onto the GPU if there is one."""
        self.guard = Guard.load(context.artifacts["model"], context.artifacts["detector"], choose_device())
        if "__pyfunc_model_path__" in os.environ:  # in MLflow's server, whose messages else print all of the images
            with contextlib.suppress(TypeError):  # NumPy before 2.1
                np.set_printoptions(override_repr=lambda array: "[...]")

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The rows in the order of the images. Refused: no images, other shapes, values outside [0, 1], NaN.

        `model_input` is {"images": array}; MLflow warns of any annotation but an array's, and of none.
        """
        try:
            judgement = self.guard.judge(torch.tensor(model_input["images"]))
        except TrlError as error:
            raise Refused(str(error)) from None
        return pd.DataFrame(
            {
                "class": judgement.classes.numpy(),
                "probability": judgement.probabilities.numpy(),
                "adversarial_score": judgement.scores.numpy(),
                "adversarial": judgement.adversarial.numpy(),
            }
        )


set_model(ServedGuard())
