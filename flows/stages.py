"""DVC's stages as commands, and the workers that run them."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from tasks.processes import count_of, wanted_processes
from tasks.redaction import redacted
from trl.common.names import check_name

DVC = [sys.executable, "-m", "dvc"]
WAIT_SECONDS = 0.5  # between two looks whether another run has ended
GRACE_SECONDS = 10.0  # time for an interrupted stage to write its checkpoint
UP_TO_DATE = re.compile(r"^(Stage )?'.+' (didn't change, skipping|is cached - skipping run)")
HINTS = re.compile(
    r"$|\s+(git add|dvc config) |Running stage |(Updating|Generating) lock file |Data and pipelines are up to date"
    r"|To (track the changes with git|enable auto staging), run:|Use `dvc push` "
    r"|ERROR: .*' is busy, it is being blocked by:|  \(PID \d+\): |If there are no processes with such PIDs"  # we wait
)
BLOCKED = re.compile(r"ERROR: .*' is busy, it is being blocked by:\s+\(PID (\d+)\)")
REMEDIES = {  # what DVC's errors say, and leave out
    "is not a git repository": "DVC needs one: run `git init` here, or work in a clone",
    "not inside of a DVC repository": "run from the project's root, or restore its folder .dvc",
    "No space left on device": "free space, then repeat",
    "Disk quota exceeded": "free space, then repeat",
    "File too large": "raise the limit of file sizes, then repeat",
    "Read-only file system": "make it writable, or work in a clone elsewhere",
    "Permission denied": "make it writable, or work in a clone elsewhere",
}


def repro(stage: str) -> list[str]:
    """The command that brings one stage up to date; several can run in parallel."""
    return [*DVC, "--wait-for-lock", "repro", "--single-item", check_stage(stage)]


def check_stage(stage: str) -> str:
    """`stage`, if its parts, as in `train@digits-um-0`, are names; else TrlError: DVC puts them in shell commands."""
    for part in stage.split("@"):
        check_name(part, f"stage {stage!r}: its part")
    return stage


def is_hint(line: str) -> bool:
    """Whether the line is a hint of DVC for interactive use, not about the stage."""
    return HINTS.match(line) is not None


def is_cached(lines: Iterable[str]) -> bool:
    """Whether DVC had nothing to run: the stage is up to date, or its results were in the cache."""
    return any(UP_TO_DATE.match(line) for line in lines)


def last_error(lines: Iterable[str]) -> str:
    """The stage's own last `error: …` line, else DVC's last `ERROR: …` with a remedy, else ""."""
    found = {prefix: line for line in lines if (prefix := line.partition(":")[0]) in ("error", "ERROR")}
    if "error" in found or "ERROR" not in found:
        return found.get("error", "")
    remedy = next((text for said, text in REMEDIES.items() if said in found["ERROR"]), "")
    return f"{found['ERROR']}{remedy and ': '}{remedy}"


def blocker(lines: Iterable[str]) -> int | None:
    """The process of another run that uses the files DVC wanted, which `--wait-for-lock` does not wait for."""
    found = BLOCKED.search("\n".join(lines))
    return int(found[1]) if found else None


def worker_environments(environ: Mapping[str, str], gpus: int, cores: int) -> list[dict[str, str]]:
    """The environment variables of each worker: one worker per GPU, or one per core (at most 4) on a CPU.

    `TRL_PROCESSES` gives each worker that many GPUs or cores. `TRL_WORKERS` sets the number of workers, which share
    GPUs if there are too few. Cores are divided among the workers unless OMP_NUM_THREADS is set.
    """
    each = wanted_processes(environ)
    wanted = count_of("TRL_WORKERS", environ)
    visible = [g for g in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g] or [str(g) for g in range(gpus)]
    device = environ.get("TRL_DEVICE") or "cuda"
    if device != "cuda":  # the CPU, or one shared device
        visible, gpus = [], int(device.startswith("cuda:"))
    count = wanted or max(1, (gpus or min(cores, 4)) // each)
    threads = environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    own = [[visible[(i * each + j) % gpus] for j in range(min(each, gpus))] if visible else [] for i in range(count)]
    return [{"OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": ",".join(some)} if some else {})} for some in own]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status (negative: killed by that signal) and its output."""

    status: int
    lines: list[str]


class Workers:
    """Run commands in the folder `cwd` in parallel, each with its share of the machine; all can be stopped together.

    They have the `variables`, too, and keep the file descriptor `lock` open, which shows that the folder is in use.
    """

    def __init__(
        self,
        environments: list[dict[str, str]],
        cwd: Path = Path(),
        variables: Mapping[str, str] = MappingProxyType({}),
        lock: int | None = None,
    ) -> None:
        self._cwd, self._variables, self._lock_of_folder = cwd, variables, lock
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, command: list[str], on_line: Callable[[str], None], lock: int | None = None) -> Outcome:
        """Run `command` on a free worker; call `on_line` for each line of output. Does nothing once stopped.

        If another run uses the same files, wait until its process ends, and repeat. `lock`: another file descriptor
        that the command keeps open.
        """
        environment, kept_open = self._free.get(), [n for n in (self._lock_of_folder, lock) if n is not None]
        try:
            while (outcome := self._once(command, environment, kept_open, on_line)).status and not self.stopped:
                if (other := blocker(outcome.lines)) is None:
                    break
                on_line(f"waiting for process {other}, another run that uses the same files")
                while psutil.pid_exists(other) and not self.stopped:
                    time.sleep(WAIT_SECONDS)
            return outcome
        finally:
            self._free.put(environment)

    def _once(
        self, command: list[str], environment: dict[str, str], kept_open: list[int], on_line: Callable[[str], None]
    ) -> Outcome:
        process = self._start(command, environment, kept_open)
        lines: list[str] = []
        if process is None:
            return Outcome(-signal.SIGINT, lines)
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(redacted(line.rstrip()))
                if not self.stopped:  # messages about the interrupt are not interesting
                    on_line(lines[-1])
        return Outcome(process.returncode, lines)

    def stop(self) -> None:
        """Stop all commands and start no more: first SIGINT, so that DVC releases its lock, then SIGKILL."""
        with self._lock:
            self.stopped = True
            running = [process for process in self._running if process.poll() is None]
        for process in running:
            _signal_group(process, signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)

    def _start(
        self, command: list[str], environment: dict[str, str], kept_open: list[int]
    ) -> "subprocess.Popen[str] | None":
        # `python` in dvc.yaml must be this interpreter; output to the pipe must not be buffered.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(
                command,
                cwd=self._cwd,
                env={**os.environ, **self._variables, **environment, "PATH": path, "PYTHONUNBUFFERED": "1"},
                pass_fds=kept_open,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # its own process group, so that `stop` reaches what DVC started
            )
            self._running = {p for p in self._running if p.poll() is None} | {process}
        return process


def _signal_group(process: "subprocess.Popen[str]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
