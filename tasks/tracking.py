"""MLflow, the record: one run per trained model, found again by the content of its weights, and one per pipeline run.

Everything is logged from result files, so a store that was lost is complete again after `python -m tasks.record`.
Only the training curves are logged live. MLflow being out of reach never fails a stage: its results are in files.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import yaml

from tasks.stage import Stage
from tasks.store import client_and_experiment
from trl.common.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WEIGHTS, CHECKPOINT, PIPELINE, LOGGED = "trl.weights", "trl.checkpoint", "trl.pipeline", "trl.logged"
NOTE = "mlflow.note.content"  # the text at the top of a run's page


@contextlib.contextmanager
def _forgiving() -> Iterator[None]:
    """Turn a failure of the tracking store into a warning: the results are in files, and recording can be repeated."""
    try:
        yield
    except Exception as error:  # whatever the store, its driver or the network raises
        why = (str(error).splitlines() or [type(error).__name__])[0]
        say(f"warning: MLflow was not updated ({why}); the results are safe, `python -m tasks.record` logs them later")


class ModelRun:
    """A model's run while it trains: its curves appear in MLflow epoch by epoch."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._client: MlflowClient | None = None
        self._run_id, self._logged = "", 0

    @classmethod
    def begin(cls, stage: Stage, fingerprint: str) -> "ModelRun":
        """Open a run, or go on with the one that an interrupted training of the same `fingerprint` left."""
        run = cls(stage)
        with _forgiving():
            client, experiment = client_and_experiment(stage)
            found = [r for r in _search(client, experiment, CHECKPOINT, fingerprint) if WEIGHTS not in r.data.tags]
            current = found[0] if found else _create(client, experiment, stage, {CHECKPOINT: fingerprint})
            run._run_id = current.info.run_id
            run._logged = int(current.data.metrics.get("epoch", 0))
            client.update_run(run._run_id, status="RUNNING")
            run._client = client
        return run

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one epoch, unless an interrupted training has logged it already."""
        if self._client is None or row["epoch"] <= self._logged:
            return
        client, self._client = self._client, None  # a store that fails once is left alone for the rest of the run
        with _forgiving():
            client.log_batch(self._run_id, metrics=_epoch_metrics(row))
            self._client = client

    def end(self, weights: str) -> None:
        """Tie the run to the weights it led to, and log the rest from the result files."""
        if self._client is not None:
            with _forgiving():
                client, experiment = client_and_experiment(self.stage)
                if _search(client, experiment, WEIGHTS, weights):  # the same training, repeated
                    client.delete_run(self._run_id)
                else:
                    client.set_tag(self._run_id, WEIGHTS, weights)  # from now on `record_model` finds it
                    client.set_tag(self._run_id, f"{LOGGED}.training.csv", weights)
        record_model(self.stage)


def record_model(stage: Stage, *, figures: bool = False) -> str | None:
    """Make a trained model's run complete: parameters, data set, and the figures of every result file that exists.

    `figures` adds artifacts (result files, weights, plots). Returns the run's id, or None if the store failed.
    What is logged already is left alone.
    """
    folder = stage.model_paths.metrics
    with _forgiving():
        client, experiment = client_and_experiment(stage)
        weights = json.loads((folder / "train.json").read_text())["weights"]
        found = _search(client, experiment, WEIGHTS, weights)
        run = found[0] if found else _create(client, experiment, stage, {WEIGHTS: weights})
        run_id: str = run.info.run_id
        for name, metrics_of in _FILES.items():
            # the same weights have the same curves: training.csv differs in its seconds at most
            if (folder / name).exists() and run.data.tags.get(f"{LOGGED}.{name}") != (
                content := weights if name.startswith("train") else _digest(folder / name)
            ):
                client.log_batch(run_id, metrics=metrics_of(folder / name))
                client.set_tag(run_id, f"{LOGGED}.{name}", content)
        if figures:
            content = _digest(*sorted(folder.iterdir()))
            if run.data.tags.get(f"{LOGGED}.artifacts") != content:
                _log_model_artifacts(client, run_id, stage)
                client.set_tag(run_id, f"{LOGGED}.artifacts", content)
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id
    return None


def leaderboard(stage: Stage) -> str | None:
    """The address of the MLflow page that lists the data set's models by worst-case accuracy; None without a store."""
    with _forgiving():
        _, experiment = client_and_experiment(stage)
        query = {
            "searchFilter": "tags.`trl.kind` = 'model'",
            "orderByKey": "metrics.`robust/worst`",
            "orderByAsc": "false",
        }
        remote = os.environ.get("MLFLOW_TRACKING_URI", "")
        local = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"  # where `make up` and `make ui` serve it
        server = remote.rstrip("/") if remote.startswith("http") else local
        # sorted by a metric, MLflow lists models themselves; sorted by date it folds them below their pipeline run
        return f"{server}/#/experiments/{experiment}/runs?{urlencode(query, quote_via=quote)}"
    return None


def record_pipeline(stage: Stage) -> bool:
    """Record every selected model completely, and the comparison as the parent run of this pipeline run.

    A pipeline run is known by the content of its results: repeating it changes nothing, new results make a new parent.
    Returns whether all of it is in the store now.
    """
    params = stage.params
    stages = [Stage(params, stage.recipe_name, m, s) for m in params.methods for s in params.seeds]
    children = [record_model(child, figures=True) for child in stages]
    with _forgiving():
        from mlflow.tracking.context.registry import resolve_tags

        client, experiment = client_and_experiment(stage)
        folders = [child.model_paths.metrics for child in stages]
        content = _digest(*(file for folder in folders for file in sorted(folder.iterdir())))
        found = _search(client, experiment, PIPELINE, content)
        if found:
            parent = found[0].info.run_id
        else:
            table = _comparison(stage)
            tags = {PIPELINE: content, "trl.recipe": stage.recipe_name, "trl.kind": "pipeline", NOTE: table}
            name = f"{stage.recipe_name} {time.strftime('%Y-%m-%d %H:%M')}"
            parent = client.create_run(experiment, run_name=name, tags=resolve_tags(tags)).info.run_id
            client.log_artifacts(parent, str(stage.paths.report), "report")
            client.log_dict(parent, params.model_dump(mode="json")["recipes"][stage.recipe_name], "recipe.yaml")
            client.log_param(parent, "methods", ", ".join(params.methods))
            client.log_param(parent, "seeds", ", ".join(map(str, params.seeds)))
            client.set_terminated(parent, "FINISHED")
        for child in children:
            if child is not None:
                client.set_tag(child, "mlflow.parentRunId", parent)
        return None not in children
    return False


def _search(client: "MlflowClient", experiment: str, tag: str, value: str) -> "list[Run]":
    return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time"]))


def _create(client: "MlflowClient", experiment: str, stage: Stage, tags: dict[str, str]) -> "Run":
    """A new run of a model, with its parameters and its data set."""
    from mlflow.entities import DatasetInput, InputTag, Param
    from mlflow.tracking.context.registry import resolve_tags

    recipe, model = stage.recipe.checked(), f"{stage.method}-{stage.seed}"
    tags = {**tags, "trl.recipe": stage.recipe_name, "trl.kind": "model"}
    run = client.create_run(experiment, run_name=f"{stage.recipe_name}/{model}", tags=resolve_tags(tags))
    sections = {
        "recipe": stage.recipe_name,
        "method": stage.method,
        "seed": stage.seed,
        "data": _flat_spec(recipe.data.model_dump()),
        "model": _flat_spec(recipe.model.model_dump()),
        "threat": recipe.threat.model_dump(),
        "train": recipe.train.model_dump(),
        "objective": _flat_spec(recipe.methods[stage.method].model_dump()),
    }
    params = [Param(name, str(value)) for name, value in _flatten(sections)]
    client.log_batch(run.info.run_id, params=params)
    description = json.loads((stage.paths.data / "data.json").read_text())
    hash_tag = InputTag("dvc.md5", _dvc_hash(stage))
    client.log_inputs(run.info.run_id, [DatasetInput(_dataset(stage, description), [hash_tag])])
    return client.get_run(run.info.run_id)


def _dataset(stage: Stage, description: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset

    return Dataset(
        name=stage.recipe.data.name,
        digest=description["sha256"][:8],
        source_type="local",
        source=json.dumps({"uri": str(stage.paths.data)}),
        profile=json.dumps({k: v for k, v in description.items() if k != "sha256"}),
    )


def _dvc_hash(stage: Stage) -> str:
    """The prepared data's hash in dvc.lock; empty where the stages ran without DVC."""
    lock = Path("dvc.lock")
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    outs = stages.get(f"prepare@{stage.recipe_name}", {}).get("outs", [{}])
    return str(outs[0].get("md5", ""))


def _flat_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in spec.items() if key != "options"}, **spec["options"]}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _metrics(values: Mapping[str, Any], step: int = 0) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [
        Metric(name, float(value), now, step)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _epoch_metrics(row: Mapping[str, Any]) -> list[Any]:
    """One row of training.csv as curves: train/…, val/clean and val/robust over epochs."""
    values: dict[str, Any] = {"epoch": int(row["epoch"])}
    for name, value in row.items():
        if name != "epoch" and value not in (None, ""):
            values[name.replace("val_", "val/") if name.startswith("val_") else f"train/{name}"] = float(value)
    return _metrics(values, int(row["epoch"]))


def _curve_metrics(path: Path) -> list[Any]:
    with path.open() as file:
        return [metric for row in csv.DictReader(file) for metric in _epoch_metrics(row)]


def _train_metrics(path: Path) -> list[Any]:
    figures = json.loads(path.read_text())
    return _metrics(
        {f"train/{k}": figures[k] for k in ("best_epoch", "parameters")} | {"train/total_seconds": figures["seconds"]}
    )


def _attack_metrics(path: Path) -> list[Any]:
    figures = json.loads(path.read_text())
    robust = {f"robust/{name}": value["accuracy"] for name, value in figures["robust"].items()}
    stages = {
        f"robust/{name}/{part}": value["accuracy"]
        for name, parts in figures.get("stages", {}).items()
        for part, value in parts.items()
    }
    warnings = {"robust/warnings": len(figures.get("warnings", []))}
    return _metrics({"clean/accuracy": figures["clean"]["accuracy"], **robust, **stages, **warnings})


def _detect_metrics(path: Path) -> list[Any]:
    """Every figure of the deployed detector; of each other one AUC, worst case with rejection and warnings."""
    figures = json.loads(path.read_text())
    values: dict[str, Any] = {}
    for name, detector in figures["detectors"].items():
        attacks, rejection = {**detector["static"], "adaptive": detector["adaptive"]}, detector["rejection"]
        if name != figures["detector"]:
            values |= {f"detect/{name}/auc/{a}": subsets["all"]["auc"]["value"] for a, subsets in attacks.items()}
            values[f"detect/{name}/reject/worst"] = rejection["worst"]["accuracy"]
            values[f"detect/{name}/warnings"] = len(detector.get("warnings", []))
            continue
        values |= {"detect/threshold": detector["threshold"], "detect/false_alarms": detector["false_alarms"]["value"]}
        values["detect/warnings"] = len(detector.get("warnings", []))
        for attack, subsets in attacks.items():
            values |= {f"detect/{kind}/{attack}": figure["value"] for kind, figure in subsets["all"].items()}
            some = {subset: subsets[subset] for subset in ("successful", "failed") if subsets[subset]}
            values |= {f"detect/auc_{subset}/{attack}": found["auc"]["value"] for subset, found in some.items()}
        kept = {
            **rejection["static"],
            **rejection["adaptive"],
            "clean": rejection["clean"],
            "worst": rejection["worst"],
        }
        values |= {f"reject/{images}": accuracy["accuracy"] for images, accuracy in kept.items()}
    groups = ("validation", "representation", "knn")
    return _metrics(values | {f"{group}/{k}": v for group in groups for k, v in figures[group].items()})


_FILES = {
    "training.csv": _curve_metrics,
    "train.json": _train_metrics,
    "attack.json": _attack_metrics,
    "detect.json": _detect_metrics,
}


def _log_model_artifacts(client: "MlflowClient", run_id: str, stage: Stage) -> None:
    from trl.report import load_results, save_figures

    paths = stage.model_paths
    client.log_artifacts(run_id, str(paths.metrics), "results")
    if paths.model.exists():
        client.log_artifacts(run_id, str(paths.model), "model")
    with tempfile.TemporaryDirectory() as folder:
        save_figures(load_results(paths.metrics.parent, [stage.method], [stage.seed]), Path(folder))
        client.log_artifacts(run_id, folder, "figures")


def _comparison(stage: Stage) -> str:
    """The comparison table as Markdown keeps it."""
    from trl.report import load_results, text_table

    params = stage.params
    return f"```\n{text_table(load_results(stage.paths.metrics, params.methods, params.seeds))}\n```"


def _digest(*files: Path) -> str:
    return hashlib.md5(b"".join(file.read_bytes() for file in files), usedforsecurity=False).hexdigest()
