"""Checkpoints of training runs."""

import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trl.common.errors import TrlError
from trl.common.files import write_atomic

SHARE = 0.02  # of the time, at most, for checkpoints
State = dict[str, Any]


class Checkpoint:
    """The newest state of a run in one file, and its best weights, which change seldom, in another one beside it.

    A state is copied at once and written in a thread while the run continues, every `seconds` (0: at every chance), or
    less often where that would take more than 2 % of the time. A crash never leaves half a file, or files that do not
    belong together. As a context, it waits for the last write. `on_save` is called after each copy. It may raise to end
    the run, which can resume from this state.
    """

    def __init__(self, path: Path, seconds: float = 30.0, on_save: Callable[[], None] = lambda: None) -> None:
        self.path, self.seconds, self.on_save = path, seconds, on_save
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._last, self._cost = time.monotonic(), 0.0
        self._epoch = 0  # of the best weights that are on disk

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        if self.seconds == 0:
            return True
        if self._writing and not self._writing.done():
            return False
        return time.monotonic() - self._last >= max(self.seconds, self._cost / SHARE)

    def save(self, state: State, best: State, epoch: int) -> None:
        """Begin to replace the files; `best` are the best weights, which are those of `epoch` (0 if there are none).

        TrlError, here or in `wait`, if the disk is full (the former files are kept).
        """
        self.wait()
        began = time.monotonic()
        changed = _copied(best) if epoch != self._epoch else None
        self._writing = self._thread.submit(self._write, _copied({**state, "best_epoch": epoch}), changed, began)
        self.on_save()

    def wait(self) -> None:
        """Wait until what was saved is on disk."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def load(self, device: torch.device) -> tuple[State, State] | None:
        """The saved state and the best weights (tensors and plain values only), or None without a file.

        TrlError if a file is damaged.
        """
        self.wait()
        if not self.path.exists():
            return None
        state = _read(self.path, device)
        self._epoch = state.pop("best_epoch", 0)
        return state, _read(self._best(self._epoch), device) if self._epoch else {}

    def remove(self) -> None:
        """Delete the files once the run's results are safe."""
        self.wait()
        self.path.unlink(missing_ok=True)
        self._remove_best()

    def _write(self, state: State, best: State | None, began: float) -> None:
        epoch = state["best_epoch"]
        if best is not None and epoch:
            write_atomic(self._best(epoch), _bytes(best))  # first, so that the state never names a missing file
        write_atomic(self.path, _bytes(state))
        if best is not None:
            self._remove_best(but=epoch)
        self._epoch, self._last = epoch, time.monotonic()
        self._cost = self._last - began

    def _best(self, epoch: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.best-{epoch}.pt")

    def _remove_best(self, but: int = 0) -> None:
        for file in self.path.parent.glob(f"{self.path.stem}.best-*.pt"):
            if file != self._best(but):
                file.unlink(missing_ok=True)


def _copied(value: Any) -> Any:
    """A copy in the CPU's memory, which the run does not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _bytes(state: State) -> memoryview:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _read(path: Path, device: torch.device) -> State:
    try:
        state: State = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise TrlError(
            f"{path}: damaged checkpoint ({str(error).splitlines()[0]}); delete it to start this training anew"
        ) from None
    return state
