"""Checkpoints from which training goes on exactly where it was."""

import io
import time
from pathlib import Path
from typing import Any

import torch

from trl.common.errors import TrlError
from trl.common.files import write_atomic


class Checkpoint:
    """One file holding the newest state of a run, replaced every `seconds`; a crash never leaves half a file."""

    def __init__(self, path: Path, seconds: float = 30.0) -> None:
        self.path, self.seconds = path, seconds
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file; TrlError if the disk is full (the former file is kept)."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, buffer.getvalue())
        self._last = time.monotonic()

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state (tensors and plain values only), or None without a file; TrlError if it is damaged."""
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise TrlError(
                f"{self.path}: damaged checkpoint ({str(error).splitlines()[0]}); delete it to start this training anew"
            ) from None
        return state

    def remove(self) -> None:
        """Delete the file once the run's results are safe."""
        self.path.unlink(missing_ok=True)
