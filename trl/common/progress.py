"""Progress for long work: a bar on a terminal, a plain line now and then in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 10.0  # a log gets at most one line per bar in this time
tqdm.set_lock(threading.RLock())  # tqdm's own is one of the system's, which a killed process leaves behind


def say(line: str) -> None:
    """Print one line that does not tear a bar apart."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """Counts `total` units of work. On a terminal it is a tqdm bar; otherwise it prints `name: done/total …` lines.

    If `quiet`, it counts and shows nothing.
    """

    def __init__(self, name: str, total: int, unit: str = "it", quiet: bool = False) -> None:
        self.name, self.total, self.unit, self.done, self.quiet = name, total, unit, 0, quiet
        self.terminal = sys.stderr.isatty() and not quiet
        self._bar = tqdm(total=total, desc=name, unit=unit, disable=not self.terminal, leave=False, dynamic_ncols=True)
        self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, n: int = 1, **figures: Any) -> None:
        """Add `n` units done; `figures` (already strings or numbers) are shown beside the count."""
        self.done += n
        if self.terminal:
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last >= LOG_SECONDS and not self.quiet:
            self._last = time.monotonic()
            shown = "".join(f"  {k} {v}" for k, v in figures.items())
            say(f"{self.name}: {self.done}/{self.total} {self.unit}{shown}")

    def jump(self, done: int) -> None:
        """Start from `done` units, as after a resume."""
        self.update(done - self.done)


def batches(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
