"""A program in the background that is found again, with all that it started, by a mark in the environment."""

import contextlib
import http.client
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from trl.common.errors import TrlError

START_SECONDS, STOP_SECONDS = 180.0, 30.0
MARK = "TRL_SERVICE"  # in the environment of a service and of all it starts: the file with its process id
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # set by Prefect in the environment of a flow run


@dataclass(frozen=True)
class Service:
    """A program; `health` is a URL, or text in its log, that shows that it is ready; its files are in `folder`."""

    name: str
    command: list[str]
    health: str
    folder: Path

    @property
    def log(self) -> Path:
        """The file with its output; a restart appends to it."""
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """The file with its process id; an id alone may have been reused, so the process must also be marked."""
        return self.folder / f"{self.name}.pid"

    def process(self) -> psutil.Process | None:
        """The process, if it is running."""
        known = self.record.read_text().strip() if self.record.exists() else ""
        return next((process for process, _ in self._marked() if str(process.pid) == known), None)

    def runs(self) -> list[psutil.Process]:
        """The processes of flow runs that it started; they may outlive it."""
        return [process for process, is_run in self._marked() if is_run]

    def start(self, environment: dict[str, str]) -> None:
        """Start it and wait until it is ready; TrlError with the end of its log if it fails."""
        environment = environment | {MARK: str(self.record)}
        with self.log.open("a") as log:
            before = log.tell()
            popen = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.record.write_text(f"{popen.pid}\n")
        deadline = time.monotonic() + START_SECONDS
        while not self._works(said := self.log.read_bytes()[before:].decode(errors="replace")):
            if popen.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(said.splitlines()[-15:])
                raise TrlError(f"{self.name} did not start; the end of {self.log}:\n{end}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop it and all it started but flow runs, also what has outlived it."""
        if process := self.process():
            _signal([process], signal.SIGTERM)
        _signal([process for process, is_run in self._marked() if not is_run], signal.SIGKILL)
        self.record.unlink(missing_ok=True)

    def stop_runs(self) -> None:
        """Stop its flow runs: they first get the time to stop their stages."""
        runs = self.runs()
        _signal([run for run in runs if _parent(run) not in runs], signal.SIGTERM)
        _signal(self.runs(), signal.SIGKILL)

    def _works(self, said: str) -> bool:
        return is_healthy(self.health) if self.health.startswith("http") else self.health in said

    def _marked(self) -> Iterator[tuple[psutil.Process, bool]]:
        """Every process that it started, itself included, and whether the process belongs to a flow run."""
        for process in psutil.process_iter(["environ"]):
            environment = process.info["environ"] or {}
            if environment.get(MARK) == str(self.record):
                yield process, FLOW_RUN in environment


def is_healthy(address: str) -> bool:
    """Whether the server at `address` responds with status 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _parent(process: psutil.Process) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return process.parent()
    return None


def _signal(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to all processes still running, and wait for them to end."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    psutil.wait_procs(processes, STOP_SECONDS)
