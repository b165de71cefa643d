"""The training loop and its parts."""

from trl.training.checkpoint import Checkpoint
from trl.training.loop import Outcome, train

__all__ = ["Checkpoint", "Outcome", "train"]
