"""Background services on this machine: Prefect's server and worker, and MLflow's server."""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from flows.background import Service
from tasks.redaction import error_line
from tasks.store import ARTIFACTS, address, follow
from trl.common.errors import TrlError

FOLDER = Path(".services").absolute()  # logs, process ids, Prefect's database and profile; see prefect.toml
PROFILES = FOLDER / "profiles.toml"
ADDRESSES = FOLDER / "addresses.json"
HOST = "127.0.0.1"
PORTS = (4200, 5000)  # of Prefect and MLflow


def services(prefect_port: int, mlflow_port: int) -> list[Service]:
    """The services in starting order."""
    prefect = [sys.executable, "-m", "prefect"]
    artifacts = Path(ARTIFACTS).absolute()
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", address(Path.cwd()), "--artifacts-destination", artifacts.as_uri()]
    return [
        Service(
            "prefect",
            [*prefect, "server", "start", "--host", HOST, "--port", str(prefect_port)],
            f"http://{HOST}:{prefect_port}/api/health",
            FOLDER,
        ),
        Service("mlflow", mlflow, f"http://{HOST}:{mlflow_port}/health", FOLDER),
        Service(
            "worker",
            [*prefect, "worker", "start", "--pool", "gpu", "--name", worker_name(), "--limit", "1"],
            "started!",
            FOLDER,
        ),
    ]


def worker_name() -> str:
    """The name of this clone's worker, which says where it is."""
    return f"{socket.gethostname()}:{FOLDER.parent}".replace("/", ".").replace("%", ".")  # Prefect allows neither


def up(prefect_port: int | None = None, mlflow_port: int | None = None) -> None:
    """Start the services that are not running, and print the addresses; what runs is left alone."""
    with _alone():
        every = services(*PORTS)
        in_use = any(service.process() or service.runs() for service in every)
        ports = choose_ports((prefect_port, mlflow_port), _known_ports(), in_use)
        server, mlflow, worker = every = services(*ports)
        missing = [service for service in every if not service.process()]
        if missing:
            try:
                _start(server, mlflow, worker, missing, ports)
            except BaseException:
                for service in reversed(missing):
                    service.stop()
                if not in_use:
                    _forget()
                raise
        else:
            print("already running")
        _print_addresses(*ports)


def _start(server: Service, mlflow: Service, worker: Service, missing: list[Service], ports: Sequence[int]) -> None:
    for service in missing:
        service.stop()  # what a killed one has left
    for service, port, option in zip((server, mlflow), ports, ("PREFECT_PORT", "MLFLOW_PORT"), strict=True):
        if service in missing:
            _require_free(port, option)
    api = f"http://{HOST}:{ports[0]}/api"
    ADDRESSES.write_text(json.dumps(ports))
    PROFILES.write_text(f'active = "trl"\n\n[profiles.trl]\nPREFECT_API_URL = "{api}"\n')
    # MLflow would start job runners, which this project does not use
    environment = {**os.environ, "PREFECT_API_URL": api, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_PORT"] = str(ports[1])  # for links
    print(f"starting {', '.join(service.name for service in missing)} …", flush=True)
    if server in missing:
        server.start(environment)
    if mlflow in missing:
        mlflow.start(environment)
        follow(Path.cwd())
    if worker in missing:
        _prefect(environment, "work-pool", "create", "gpu", "--type", "process", "--overwrite")
        _prefect(environment, "deploy", "--all")
        from flows.lost import end_lost_runs  # imports Prefect, which takes a second

        if lost := end_lost_runs(api, worker_name()):
            print(f"{lost} flow run(s) had been killed: marked as Crashed")
        worker.start(environment)


def choose_ports(asked: Sequence[int | None], known: Sequence[int] | None, in_use: bool) -> list[int]:
    """The ports of Prefect and MLflow: those asked for, else those known from before, else 4200 and 5000.

    TrlError if both are the same, or if others than the known ones are asked for while these are `in_use`.
    """
    ports = [port or default for port, default in zip(asked, known or PORTS, strict=True)]
    if in_use and known and ports != list(known):
        raise TrlError("the services use ports {} and {}; run `make down` before you change them".format(*known))
    if ports[0] == ports[1]:
        raise TrlError(f"Prefect and MLflow cannot both use port {ports[0]}; choose another one with MLFLOW_PORT=…")
    return ports


def ui(mlflow_port: int | None = None) -> None:
    """Record any missing results in MLflow, and serve its UI until interrupted."""
    mlflow_port = mlflow_port or PORTS[1]
    _, mlflow, _ = services(PORTS[0], mlflow_port)
    if mlflow.process():
        print("MLflow is already running:")
        return _print_addresses(*_known_ports() or PORTS)
    _require_free(mlflow_port, "MLFLOW_PORT")
    subprocess.run([sys.executable, "-m", "tasks.record"])
    follow(Path.cwd())  # also if nothing could be recorded
    print(f"MLflow    http://{HOST}:{mlflow_port}  (Ctrl-C to stop)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(mlflow.command, stderr=subprocess.DEVNULL)


def down() -> None:
    """Stop the services and everything they started, the worker's flow run first."""
    with _alone():
        stopped = []
        for service in reversed(services(*PORTS)):
            if service.process() or service.runs():
                stopped.append(service.name)
            service.stop_runs()
            service.stop()
            service.stop_runs()  # one that the worker had begun meanwhile
        _forget()
        print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def _forget() -> None:
    for file in (ADDRESSES, PROFILES):
        file.unlink(missing_ok=True)


def _known_ports() -> list[int] | None:
    with contextlib.suppress(OSError, ValueError):
        prefect_port, mlflow_port = json.loads(ADDRESSES.read_text())
        return [int(prefect_port), int(mlflow_port)]
    return None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Inside, no other process starts or stops the services of this clone."""
    FOLDER.mkdir(exist_ok=True)
    with FileLock(FOLDER / "lock"):
        yield


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


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text}: must be a port from 1 to 65535")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Start, stop or show the services; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.services", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "ui"])
    parser.add_argument("--prefect-port", type=_port, default=None)
    parser.add_argument("--mlflow-port", type=_port, default=None)
    given = parser.parse_args(arguments)
    try:
        if given.action == "up":
            up(given.prefect_port, given.mlflow_port)
        elif given.action == "ui":
            ui(given.mlflow_port)
        else:
            down()
    except (TrlError, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
