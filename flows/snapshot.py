"""A snapshot of the project, in which a flow run works: what is edited meanwhile, or by another run, does not reach it.

It is a Git worktree of HEAD with the uncommitted changes. It shares DVC's cache, the checkpoints, raw data and MLflow's
store with the project.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.config import Config

from trl.common.errors import TrlError

FOLDER = Path(".dvc", "tmp", "snapshots")  # ignored by Git; on the file system of DVC's cache, which is linked to
FOLDERS, STORE = ("checkpoints", "data"), "mlflow.db"  # what the project and its snapshots have in common
RESULTS = "metrics"  # of models that are not selected, too: the report depends on the whole folder
LOCKS = "locks"
GIT = ["git", "-c", "core.hooksPath=/dev/null", "-c", "user.name=trl", "-c", "user.email=trl@localhost"]
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Snapshot:
    """The folders of the `project` and of its snapshot (`root`), and the lock that says that the snapshot is in use."""

    project: Path
    root: Path
    lock: int  # a file descriptor: the programs that work in the snapshot inherit it

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that name a place relative to the project, as absolute ones."""
        found = {}
        if folder := environ.get("TRL_RAW_DATA"):
            found["TRL_RAW_DATA"] = str(self.project / folder)
        scheme, _, path = environ.get("MLFLOW_TRACKING_URI", "").partition(":///")
        if scheme in ("sqlite", "sqlite+pysqlite") and path:
            found["MLFLOW_TRACKING_URI"] = f"{scheme}:///{self.project / path}"
        return found

    @contextlib.contextmanager
    def alone(self, work: str, given_up: Callable[[], bool], on_wait: Callable[[], None]) -> Iterator[int | None]:
        """Inside, no other run in the project does this `work`. Gives the lock, or None once the wait is `given_up`."""
        name = hashlib.sha256(work.encode()).hexdigest()[:32]
        with _opened(self.project / FOLDER / LOCKS / name) as lock:
            waits = False
            while not _locked(lock):
                if given_up():
                    yield None
                    return
                if not waits:
                    on_wait()
                waits = True
                time.sleep(POLL_SECONDS)
            yield lock


@contextlib.contextmanager
def snapshot(project: Path) -> Iterator[Snapshot]:
    """Make a snapshot of the project in the folder `project`, and remove it at the end.

    TrlError if the project is no Git repository, or if Git fails.
    """
    commit, below = _commit(project), _git(project, "rev-parse", "--show-prefix")
    with contextlib.ExitStack() as at_end:
        try:
            tree, lock = _claim(project, at_end)
            _git(project, "worktree", "add", "--quiet", "--detach", "--force", str(tree), commit)
            made = Snapshot(project, tree / below, lock)
            _share(made)
        except OSError as error:
            raise TrlError(f"{project / FOLDER}: cannot hold a snapshot ({error.strerror})") from None
        yield made


def _claim(project: Path, at_end: contextlib.ExitStack) -> tuple[Path, int]:
    """A folder for a new snapshot, removed `at_end`, and its lock. Folders that killed runs left are removed first."""
    folder = project / FOLDER
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    with _opened(folder / LOCKS / "claim") as claim:  # no other run may take a folder without a lock yet for a left one
        fcntl.flock(claim, fcntl.LOCK_EX)
        for left in folder.iterdir():
            if left.is_dir() and left.name != LOCKS:
                with _opened(left.with_suffix(".lock")) as lock:
                    if _locked(lock):
                        _remove(project, left)
        tree = Path(tempfile.mkdtemp(dir=folder))
        lock = at_end.enter_context(_opened(tree.with_suffix(".lock")))
        fcntl.flock(lock, fcntl.LOCK_EX)
    at_end.callback(_remove, project, tree)
    return tree, lock


def _commit(project: Path) -> str:
    """HEAD, or a commit on top of it with what is not committed; the index stays as it is."""
    inside = subprocess.run([*GIT, "rev-parse", "--git-path", "index"], cwd=project, capture_output=True, text=True)
    if inside.returncode:
        said = inside.stderr.strip().splitlines() or [""]
        raise TrlError(f"a run works on a snapshot of a Git repository; make one by `git init` ({said[-1]})")
    head = subprocess.run(
        [*GIT, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"], cwd=project, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        with contextlib.suppress(FileNotFoundError):  # nothing was ever added
            shutil.copy2(project / inside.stdout.strip(), index)
        variables = {"GIT_INDEX_FILE": str(index)}
        _git(project, "add", "--all", ":/", **variables)
        tree = _git(project, "write-tree", **variables)
    if head and tree == _git(project, "rev-parse", f"{head}^{{tree}}"):
        return head
    return _git(project, "commit-tree", tree, *(["-p", head] if head else []), "-m", "Snapshot of a flow run")


def _share(made: Snapshot) -> None:
    """Give a new snapshot what it has in common with the project, and DVC's settings."""
    project, root = made.project, made.root
    for name in FOLDERS:
        (project / name).mkdir(exist_ok=True)
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).symlink_to(project / name)
    (root / STORE).symlink_to(project / STORE)
    if (project / RESULTS).is_dir():
        shutil.copytree(project / RESULTS, root / RESULTS, dirs_exist_ok=True)
    local = project / ".dvc" / Config.CONFIG_LOCAL
    if local.exists():
        shutil.copy(local, root / ".dvc")
    cache = Config(str(project / ".dvc"))["cache"].get("dir") or project / ".dvc" / "cache"
    with Config(str(root / ".dvc")).edit("local") as config:
        # links, since copies of large results would cost time and space; and nothing is left behind elsewhere
        config.setdefault("cache", {}).update(dir=str(project / ".dvc" / cache), type=["hardlink", "symlink", "copy"])
        config.setdefault("core", {}).update(site_cache_dir=str(root / ".dvc" / "tmp" / "site"))


def _remove(project: Path, tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)  # links are removed, not what they lead to
    _git(project, "worktree", "prune", "--expire=now")
    tree.with_suffix(".lock").unlink(missing_ok=True)


def _git(project: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [*GIT, *arguments], cwd=project, env={**os.environ, **variables}, capture_output=True, text=True
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise TrlError(f"git {arguments[0]}: {said}")
    return done.stdout.strip()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether the lock could be taken; it is free again once every program that holds the descriptor has ended."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
