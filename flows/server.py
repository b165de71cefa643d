"""A temporary Prefect server, for flow runs without a configured server.

Prefect can start one itself, but first imports the whole server into the flow's process, which takes seconds.
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import prefect
from filelock import FileLock
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, get_current_settings

from flows.background import is_healthy
from flows.services import HOST
from trl.common.errors import TrlError

STOP_SECONDS = 5.0


class TemporaryServer:
    """A server that lives as long as this process, even if that is killed.

    Ctrl-C does not reach it, so it can record how the run ended.
    """

    def __init__(self) -> None:
        home = PREFECT_HOME.value()
        home.mkdir(parents=True, exist_ok=True)
        # two servers that create the database at once break it
        self._starting = FileLock(home / "temporary-server.lock")
        self._starting.acquire()
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        self.api = f"http://{HOST}:{port}/api"
        app = ["--app-dir", str(Path(prefect.__file__).parent), "--factory", "prefect.server.api.server:create_app"]
        options = ["--host", HOST, "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
        environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server inherits this
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "flows.tied", "uvicorn", *app, *options]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=self._output, stderr=self._output
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        atexit.register(self._stop)

    def wait(self) -> None:
        """Wait until the server responds; TrlError if it does not."""
        seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        deadline = time.monotonic() + seconds
        try:
            while not is_healthy(f"{self.api}/health"):
                if self._process.poll() is not None:
                    raise TrlError(f"Prefect's temporary server did not start{self._reason()}")
                if time.monotonic() > deadline:
                    raise TrlError(
                        f"Prefect's temporary server did not start within {seconds} s; give it more on a busy machine, "
                        f"with {PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.name}=120, or try `make up`"
                    )
                time.sleep(0.1)
        finally:
            self._starting.release()

    def _reason(self) -> str:
        self._output.seek(0)
        errors = re.findall(
            r"^[\w.]*(?:Error|Exception): .*", self._output.read().decode(errors="replace"), re.MULTILINE
        )
        said = f" ({errors[-1]})" if errors else ""
        return f"{said}: free space, check permissions of {PREFECT_HOME.value()}, or try a permanent one with `make up`"

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
