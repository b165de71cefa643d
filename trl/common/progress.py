"""Progress of long work: a bar on a terminal, occasional plain lines in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 10.0  # minimum time between two lines in a log
tqdm.set_lock(threading.RLock())  # tqdm's default is a system-wide lock, which a killed process would leak


def say(line: str) -> None:
    """Print one line without breaking a progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """Counts `total` units of work: a tqdm bar on a terminal, otherwise lines such as `name: done/total …`.

    `quiet` only counts and shows nothing.
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
        """Add `n` finished units; `figures` (strings or numbers) are shown next to the count."""
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
        """Set the count to `done` units, for example after a resume."""
        self.update(done - self.done)


def batches(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
