"""Background services on this machine: Prefect's server and worker, and MLflow's server."""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks.store import ARTIFACTS, DATABASE, follow
from trl.common.errors import TrlError

FOLDER = Path(".services").absolute()  # logs, process ids, Prefect's database and profile; see prefect.toml
PROFILES = FOLDER / "profiles.toml"
ADDRESSES = FOLDER / "addresses.json"
START_SECONDS, STOP_SECONDS = 180.0, 30.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Service:
    """A background program; `health` is a URL, or text in its log, that shows that it is ready."""

    name: str
    command: list[str]
    health: str

    @property
    def log(self) -> Path:
        """The file with its output."""
        return FOLDER / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """The file with its process id and start time; an id alone may have been reused."""
        return FOLDER / f"{self.name}.json"

    def process(self) -> psutil.Process | None:
        """The process, if it is running."""
        try:
            known = json.loads(self.record.read_text())
            process = psutil.Process(known["pid"])
            alive = process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, psutil.Error):
            return None
        return process if alive else None

    def start(self, environment: dict[str, str]) -> None:
        """Start it and wait until it is ready; TrlError with the end of its log if it fails."""
        with self.log.open("w") as log:
            popen = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.record.write_text(json.dumps({"pid": popen.pid, "created": psutil.Process(popen.pid).create_time()}))
        deadline = time.monotonic() + START_SECONDS
        while not self._works():
            if popen.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(self.log.read_text().splitlines()[-15:])
                raise TrlError(f"{self.name} did not start; the end of {self.log}:\n{end}")
            time.sleep(0.2)

    def _works(self) -> bool:
        if not self.health.startswith("http"):
            return self.health in self.log.read_text()
        return is_healthy(self.health)


def is_healthy(address: str) -> bool:
    """Whether the server at `address` responds with status 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def services(prefect_port: int, mlflow_port: int) -> list[Service]:
    """The services in starting order."""
    prefect = [sys.executable, "-m", "prefect"]
    store, artifacts = Path(DATABASE).absolute(), Path(ARTIFACTS).absolute()
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", artifacts.as_uri()]
    return [
        Service(
            "prefect",
            [*prefect, "server", "start", "--host", HOST, "--port", str(prefect_port)],
            f"http://{HOST}:{prefect_port}/api/health",
        ),
        Service("mlflow", mlflow, f"http://{HOST}:{mlflow_port}/health"),
        Service("worker", [*prefect, "worker", "start", "--pool", "gpu"], "started!"),
    ]


def up(prefect_port: int, mlflow_port: int) -> None:
    """Start the services unless they are running, and print their addresses."""
    FOLDER.mkdir(exist_ok=True)
    server, mlflow, worker = every = services(prefect_port, mlflow_port)
    running = [service.name for service in every if service.process()]
    if len(running) == len(every):
        print("already running")
        return _print_addresses(*json.loads(ADDRESSES.read_text()))
    if running:  # some have died
        down()
    for port, option in ((prefect_port, "PREFECT_PORT"), (mlflow_port, "MLFLOW_PORT")):
        _require_free(port, option)
    api = f"http://{HOST}:{prefect_port}/api"
    # MLflow would start job runners, which this project does not use
    environment = {**os.environ, "PREFECT_API_URL": api, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        print("starting Prefect and MLflow …", flush=True)
        server.start(environment)
        mlflow.start(environment)
        follow(Path.cwd())
        _prefect(environment, "work-pool", "create", "gpu", "--type", "process", "--overwrite")
        _prefect(environment, "deploy", "--all")
        worker.start(environment)
    except BaseException:
        down()
        raise
    PROFILES.write_text(f'active = "trl"\n\n[profiles.trl]\nPREFECT_API_URL = "{api}"\n')
    ADDRESSES.write_text(json.dumps([prefect_port, mlflow_port]))
    _print_addresses(prefect_port, mlflow_port)


def ui(mlflow_port: int) -> None:
    """Record any missing results in MLflow, and serve its UI until interrupted."""
    _, mlflow, _ = services(0, mlflow_port)
    if mlflow.process():
        print("MLflow is already running:")
        return _print_addresses(*json.loads(ADDRESSES.read_text()))
    _require_free(mlflow_port, "MLFLOW_PORT")
    subprocess.run([sys.executable, "-m", "tasks.record"])
    print(f"MLflow    http://{HOST}:{mlflow_port}  (Ctrl-C to stop)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(mlflow.command, stderr=subprocess.DEVNULL)


def down() -> None:
    """Stop the services and everything they started, the worker and its flow run first."""
    PROFILES.unlink(missing_ok=True)
    stopped = []
    for service in reversed(services(0, 0)):
        if process := service.process():
            family = [process, *process.children(recursive=True)]
            # The flow run first, so that it stops its stages and the worker reports its end.
            for group in (process.children(), [process]):
                _signal(group, signal.SIGTERM)
            _signal(family, signal.SIGKILL)
            stopped.append(service.name)
        service.record.unlink(missing_ok=True)
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def _signal(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to all processes still running, and wait for them to end."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    psutil.wait_procs(processes, STOP_SECONDS)


def _print_addresses(prefect_port: int, mlflow_port: int) -> None:
    bin_folder = os.path.relpath(Path(sys.executable).parent)
    print(
        f"Prefect   http://{HOST}:{prefect_port}\n"
        f"MLflow    http://{HOST}:{mlflow_port}\n"
        f"logs      {os.path.relpath(FOLDER)}/*.log\n\n"
        f"next      {bin_folder}/prefect deployment run trl/full --watch\n"
        f"          (from another folder: export PREFECT_API_URL=http://{HOST}:{prefect_port}/api)\n"
        "stop      make down"
    )


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise TrlError(f"port {port} is in use by another program; choose another one with {option}=…") from None


def _prefect(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise TrlError(f"prefect {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def main(arguments: list[str] | None = None) -> int:
    """Start, stop or show the services; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.services", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "ui"])
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    given = parser.parse_args(arguments)
    try:
        if given.action == "up":
            up(given.prefect_port, given.mlflow_port)
        elif given.action == "ui":
            ui(given.mlflow_port)
        else:
            down()
    except TrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
