"""Check the machine and the services: name every fault with its remedy, in one line each."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from flows.background import is_healthy
from flows.services import ADDRESSES, PORTS, services
from flows.stages import worker_environments
from tasks.redaction import redacted
from tasks.store import DATABASE
from trl.common.errors import TrlError, in_one_line

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

NEEDED_BYTES = 2e9  # of free disk space
CLOCK_SECONDS = 5.0  # how much the clocks of two machines may differ
MISSED_HEARTBEATS = 3  # after which a worker counts as lost, as in Prefect
INSTALL = "python -m pip install -c constraints.txt -e '.[pipeline]'"


def versions(project: Path = Path("pyproject.toml")) -> Iterator[str]:
    """Libraries that are missing, or not in the range that `project` asks for."""
    from packaging.requirements import Requirement

    asked = tomllib.loads(project.read_text())["project"]
    for text in [*asked["dependencies"], *asked["optional-dependencies"]["pipeline"]]:
        requirement = Requirement(text)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name} is not installed: {INSTALL}"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is installed, but {requirement} is needed: {INSTALL}"


def devices() -> Iterator[str]:
    """A device that cannot be used, and a GPU that PyTorch does not see."""
    import torch

    from trl.nn.device import choose_device

    try:
        choose_device()
        worker_environments(os.environ, torch.cuda.device_count(), 1)
    except TrlError as error:
        yield f"{error}; change or unset the environment variable"
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        yield "PyTorch cannot use this machine's GPU: install a PyTorch for its driver, see pytorch.org"


def disk(needed: float = NEEDED_BYTES) -> Iterator[str]:
    """Too little space, or a folder that cannot be written."""
    free = shutil.disk_usage(".").free
    if free < needed:
        yield f"{free / 1e9:.1f} GB free, {needed / 1e9:.0f} GB needed: `dvc gc --workspace`, or remove old checkpoints"
    if not os.access(".", os.W_OK):
        yield f"{Path.cwd()} cannot be written: change its permissions"


def project() -> Iterator[str]:
    """Git or DVC missing from the folder."""
    for name in ("git", "dvc"):
        if not Path(f".{name}").exists():
            yield f"no .{name} in {Path.cwd()}: run this in the project's folder, or `{name} init` there"


def remote() -> Iterator[str]:
    """A default DVC remote that cannot be reached; none at all is no fault."""
    shown = subprocess.run([sys.executable, "-c", _REMOTE], capture_output=True, text=True)
    if shown.returncode:
        said = (shown.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield f"the DVC remote cannot be reached ({said}): mount or start it, or `dvc remote modify`"


# In a process of its own: file systems of remotes start threads that would keep this one alive.
_REMOTE = """
from dvc.repo import Repo
with Repo() as repo:
    if repo.config["core"].get("remote"):
        remote = repo.cloud.get_remote()
        if not remote.fs.exists(remote.path) and remote.fs.protocol == "local":
            raise SystemExit(f"no folder {remote.path}")
"""


def store() -> Iterator[str]:
    """An MLflow store that does not respond, or a damaged database."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith("http"):
        if not is_healthy(f"{address.rstrip('/')}/health"):
            yield "MLflow's server does not respond: start it, or correct MLFLOW_TRACKING_URI"
    elif not address and Path(DATABASE).exists():
        try:
            with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as connection:
                (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            said = str(error)
        if said != "ok":
            yield f"{DATABASE} is damaged ({said}): move it away, then `python -m tasks.record` fills a new one"


def background() -> Iterator[str]:
    """What `make up` started and that has died."""
    if ADDRESSES.exists():
        for service in services(*PORTS):
            if not service.process():
                yield f"{service.name} is not running, see {service.log}: `make up`"


def server(api: str | None) -> Iterator[str]:
    """No Prefect server, or one that does not respond."""
    if not api:
        yield "no Prefect server is known here: `make up` (only `make run` works without)"
    elif not is_healthy(f"{api}/health"):
        yield f"Prefect's server at {api} does not respond: `make up`, or correct PREFECT_API_URL"


def pool(client: "SyncPrefectClient") -> Iterator[str]:
    """No work pool, a paused one, or no deployment."""
    from prefect.exceptions import ObjectNotFound

    try:
        if client.read_work_pool("gpu").is_paused:
            yield "the work pool gpu is paused: `prefect work-pool resume gpu`"
    except ObjectNotFound:
        yield "there is no work pool gpu: `make down`, then `make up`"
    try:
        if client.read_deployment_by_name("trl/full").paused:
            yield "the deployment trl/full is paused: resume it on its page"
    except ObjectNotFound:
        yield "there is no deployment trl/full: `prefect deploy --all`"


def queues(client: "SyncPrefectClient") -> Iterator[str]:
    """Paused queues of the pool."""
    for queue in client.read_work_queues(work_pool_name="gpu"):
        if queue.is_paused:
            yield f"the queue {queue.name} is paused: `prefect work-queue resume {queue.name} --pool gpu`"


def workers(client: "SyncPrefectClient") -> Iterator[str]:
    """No worker in the pool with a recent heartbeat."""
    known = client.read_workers_for_work_pool("gpu")
    beats = [(worker.last_heartbeat_time, worker.heartbeat_interval_seconds or 30) for worker in known]
    return worker_fault([(time.time() - last.timestamp()) / interval for last, interval in beats if last])


def worker_fault(ages: Sequence[float]) -> Iterator[str]:
    """The fault of a pool whose workers have last been heard of `ages` ago, in their heartbeat intervals."""
    if min(ages, default=float("inf")) > MISSED_HEARTBEATS:
        yield f"none of {len(ages)} workers of the pool gpu responds: `make up`, or start one on its machine"


def clock(client: "SyncPrefectClient") -> Iterator[str]:
    """A clock that differs from the server's: runs would start late, and leases end early."""
    return clock_fault(client.hello().headers["date"])


def clock_fault(date: str) -> Iterator[str]:
    """The fault of a clock that is far from `date`, a time in the form of HTTP."""
    ahead = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(ahead) > CLOCK_SECONDS:
        yield f"this clock differs by {ahead:+.0f} s from the server's: synchronise both, `timedatectl set-ntp on`"


LOCAL: tuple[Callable[[], Iterable[str]], ...] = (
    *(versions, devices, disk, project, remote, store),
    background,
)
SERVED: tuple[Callable[["SyncPrefectClient"], Iterable[str]], ...] = (queues, workers, clock)


def faults(check: Callable[[], Iterable[str]]) -> list[str]:
    """What a check finds; a check that itself fails is a fault."""
    try:
        return list(check())
    except Exception as error:
        return [f"cannot be checked: {in_one_line(error)}"]


def main() -> int:
    """Run all checks and print a line for each result; the exit status is 1 if there is a fault."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL

    found = {check.__name__: faults(check) for check in LOCAL}
    api = PREFECT_API_URL.value()
    found["server"] = faults(partial(server, api))
    if not found["server"]:
        with get_client(sync_client=True) as client:
            found["pool"] = faults(partial(pool, client))
            for check in SERVED if not any("no work pool" in line for line in found["pool"]) else ():
                found[check.__name__] = faults(partial(check, client))
    for name, lines in found.items():
        for line in lines or [""]:
            print(redacted(f"{'FAULT' if line else 'ok':6}{name:11}{line}".rstrip()))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
