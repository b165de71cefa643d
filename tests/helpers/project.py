"""A project of its own for each end-to-end test: this code, a recipe that takes seconds, a fresh DVC and Git."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.tiny import TINY
from tests.helpers import ROOT


class Project:
    """A copy of the project in `root`, to be worked on from a shell as a user would."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, "/mlflow.db"
        skipped = shutil.ignore_patterns("__pycache__")
        for name in ("trl", "tasks", "flows"):
            shutil.copytree(ROOT / name, root / name, ignore=skipped)
        (root / "data").mkdir()
        for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "data/.gitignore", "prefect.yaml"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, root / name)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "TRL_"))}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(root / ".services"),
            "DVC_NO_ANALYTICS": "1",
        }
        self.set(lambda p: p.update(methods=["um", "tla"], seeds=[0]))
        self.set(lambda p: p["recipes"]["digits"].update(TINY))
        self.shell("git", "init", "-q")
        self.shell("dvc", "init", "-q")

    def copy(self, root: Path) -> "Project":
        """Another project with all that this one has by now."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        other = copy(self)
        other.root = root
        other.environment = self.environment | {"PYTHONPATH": str(root), "PREFECT_HOME": str(root / ".services")}
        return other

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def set(self, change: Callable[[dict[str, Any]], Any]) -> None:
        params = self.params()
        change(params)
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def shell(self, *command: str, fails: bool = False, timeout: float = 300, **environment: str) -> str:
        """Run a command; its output. It must succeed, or fail if `fails`."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)} → {done.returncode}\n{done.stdout}"
        return done.stdout

    def client(self) -> MlflowClient:
        """Of the project's MLflow store."""
        return MlflowClient(f"sqlite:///{self.root}{self.store}")

    def runs(self, kind: str) -> list[Run]:
        """The runs of models or pipelines in MLflow."""
        client = self.client()
        experiment = client.get_experiment_by_name("digits")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.`trl.kind` = '{kind}'"))
