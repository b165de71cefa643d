"""Run a module as a program that ends when its standard input closes, so also when its parent is killed.

`python -m flows.tied MODULE …` is like `python -m MODULE …`. The parent keeps the other end of a pipe.
"""

import os
import runpy
import signal
import sys
import threading
import time

END_SECONDS = 5.0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # unlike sys.stdin.read, this holds no lock that would disturb an exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
