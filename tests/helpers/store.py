"""A project with a real MLflow store in a folder of the test's own."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from benchmarks.tiny import TINY
from tasks.stage import Stage
from tasks.store import client_and_experiment
from tests.helpers import ROOT
from trl.config import load_params


def make_store(folder: Path) -> Path:
    """An empty store, which takes seconds to make: tests copy it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    before = Path.cwd()
    os.chdir(folder)
    try:
        client_and_experiment(Stage(load_params(ROOT / "params.yaml", as_written=True), "digits", "at", 0))
    finally:
        os.chdir(before)
    return folder / "mlflow.db"


def make_project(folder: Path, store: Path, methods: list[str]) -> None:
    """A quick recipe and the folders that stages leave, with a copy of `store`."""
    shutil.copy(store, folder / "mlflow.db")
    shutil.copy(ROOT / "params.yaml", folder)
    edit_params(folder, lambda p: p.update(recipe="digits", methods=methods, seeds=[0]))
    edit_params(folder, lambda p: p["recipes"]["digits"].update(TINY))
    for name in ("data", "report"):
        (folder / "outputs/digits" / name).mkdir(parents=True)
    (folder / "outputs/digits/data/data.json").write_text(json.dumps({"sha256": "0" * 64}))


def edit_params(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    change(params)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def runs(folder: Path, kind: str = "model", view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """The project's runs, the oldest first."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = f"tags.`trl.kind` = '{kind}'"
    return list(client.search_runs(experiments, wanted, view, order_by=["attributes.start_time"]))


def steps(folder: Path, run: Run, metric: str) -> list[int]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]
