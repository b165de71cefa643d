"""MLflow's store: opened by one process at a time, and found again where the project was moved or copied to."""

import contextlib
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from tasks.stage import Stage

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = re.compile(r"sqlite(\+pysqlite)?:///([^?]+)")
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"  # in the project's root
MLFLOW_DEFAULT = "mlruns"  # where MLflow puts the artifacts of experiments that are given no place

# where MLflow keeps absolute addresses of artifacts; none of its interfaces changes one
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def client_and_experiment(stage: Stage) -> "tuple[MlflowClient, str]":
    """The tracking client and the id of the data set's experiment, created if it is missing.

    The store is `MLFLOW_TRACKING_URI`, or mlflow.db in the project's root. A project's mlflow.db has its artifacts
    beside it, in mlartifacts, and is told where the project is now; any other store is used as it is.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # a link where a flow run works on a snapshot: the store is the project's
    store = os.environ.get("MLFLOW_TRACKING_URI") or address(Path(DATABASE).resolve().parent)
    root = _project(store)
    name = stage.recipe.data.name
    with _alone(store):
        client = MlflowClient(store)
        client.get_experiment_by_name(name)  # creates the tables
    if root:
        follow(root)
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return client, found.experiment_id
    try:
        artifacts = (root / ARTIFACTS).as_uri() if root else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the page's layout: training, not chat models
        return client, client.create_experiment(name, artifact_location=artifacts, tags=kind)
    except MlflowException:
        if not (found := client.get_experiment_by_name(name)):
            raise
        return client, found.experiment_id  # a stage beside this one was faster


def address(root: Path) -> str:
    """MLflow's address of the store in the project's folder `root`, whatever the name of that folder."""
    path = str(root / DATABASE)
    escaped = path.replace("%", "%25").replace("?", "%3F")  # in a URL `%20` is a space, and `?` starts a query
    # under the short scheme MLflow would make a folder of the escaped name
    return f"sqlite:///{path}" if escaped == path else f"sqlite+pysqlite:///{escaped}"


def follow(root: Path) -> None:
    """Let the store in the project's folder `root` find its artifacts there, if the project was elsewhere before.

    A copy of a project so has artifacts of its own. Without a store nothing happens; sqlite3.Error if it is damaged.
    """
    path = root / DATABASE
    if not path.exists():
        return
    # one transaction, which other processes wait for: all addresses are changed, or none
    with _alone(address(root)), contextlib.closing(sqlite3.connect(path, timeout=60)) as store, store:
        suffix = f"/{ARTIFACTS}"
        experiments = store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (location,) in experiments:
            if location and location.startswith("file:") and location.endswith(suffix):
                former = Path(url2pathname(urlsplit(location).path)).parent
                if former != root:
                    _move(store, former, root)


def _move(store: sqlite3.Connection, former: Path, root: Path) -> None:
    for folder in (ARTIFACTS, MLFLOW_DEFAULT):
        before, after = former / folder, root / folder
        # MLflow writes one as a URI or as a path
        for old, new in ((before.as_uri(), after.as_uri()), (str(before), str(after))):
            for table, column in _ADDRESSES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def _project(store: str) -> Path | None:
    """The folder of the project whose mlflow.db `store` names; None for any other store."""
    path = _file(store)
    return path.parent if path and path.name == DATABASE else None


def _file(store: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    found = SQLITE.match(store)
    return Path(unquote(found[2])).resolve() if found else None


def _alone(store: str) -> contextlib.AbstractContextManager[object]:
    """Inside, no other process creates the tables of an SQLite store: two that did it at once would leave it broken."""
    path = _file(store)
    return FileLock(f"{path}.lock") if path else contextlib.nullcontext()
