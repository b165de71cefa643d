"""An interrupted training first finishes its step, so that its state is whole and can be saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NOTE = b"\ninterrupted: saving a checkpoint after this step; interrupt again to stop at once\n"


@contextlib.contextmanager
def interrupts_noted(*, enabled: bool) -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM is only noted; yields a function that says whether there was one.

    The next one has its usual effect. Only in the main thread, where Python allows it, and not for signals that are
    ignored.
    """
    noted: list[int] = []
    former: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        restore()
        os.write(2, NOTE)  # print is not safe in a handler

    def restore() -> None:
        for number, usual in former.items():
            signal.signal(number, usual)

    if enabled and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if (usual := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                former[number] = usual
                signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        restore()
