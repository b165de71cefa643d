"""MLflow, the record: one run per trained model, found again by the content of its weights, and one per pipeline run.

While a model trains, its curves are logged live; `python -m tasks.record` logs all else from the result files, and the
curves, too, if the store was lost. MLflow being out of reach never fails a stage: its results are in files.
"""

import contextlib
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

from tasks.metrics import (
    attack_metrics,
    certify_metrics,
    detect_metrics,
    ensemble_metrics,
    epoch_metrics,
    train_metrics,
)
from tasks.redaction import redacted
from tasks.stage import Stage
from tasks.store import client_and_experiment
from trl.common.errors import TrlError
from trl.common.progress import say
from trl.results import (
    AttackResult,
    CertifiedPoint,
    CertifyResult,
    DetectResult,
    Epoch,
    ModelResults,
    Results,
    TrainResult,
    collect,
    load_model_results,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WEIGHTS, CHECKPOINT, PIPELINE, LOGGED = "trl.weights", "trl.checkpoint", "trl.pipeline", "trl.logged"
NOTE = "mlflow.note.content"  # the text at the top of a run's page


@contextlib.contextmanager
def _forgiving() -> Iterator[None]:
    """Turn a failure of the store into a warning: the results are in files, whose own errors (TrlError) pass."""
    try:
        yield
    except TrlError:
        raise
    except Exception as error:  # whatever the store, its driver or the network raises
        why = redacted((str(error).strip().splitlines() or [type(error).__name__])[0])
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

    def log(self, epoch: Epoch) -> None:
        """Log one epoch, unless an interrupted training has logged it already."""
        if self._client is None or epoch.epoch <= self._logged:
            return
        client, self._client = self._client, None  # a store that fails once is left alone for the rest of the run
        with _forgiving():
            client.log_batch(self._run_id, metrics=_points(epoch_metrics(epoch), epoch.epoch))
            self._client = client

    def end(self, weights: str) -> None:
        """Tie the run, which has all curves, to the weights it led to: `record_model` finds it by them."""
        if self._client is None:
            return
        with _forgiving():
            client, experiment = client_and_experiment(self.stage)
            if _search(client, experiment, WEIGHTS, weights):  # the same training, repeated
                client.delete_run(self._run_id)
            else:
                client.set_tag(self._run_id, WEIGHTS, weights)
                client.set_tag(self._run_id, f"{LOGGED}.{Epoch.file}", weights)
                client.set_terminated(self._run_id, "FINISHED")


def record_model(stage: Stage, results: ModelResults, *, artifacts: bool = False) -> str | None:
    """Make a trained model's run complete: parameters, data set, and the figures of all result files.

    With `artifacts` also the result files themselves, weights and plots. Returns the run's id, or None if the store
    failed. What is logged already is left alone.
    """
    folder, weights = stage.model_paths.metrics, results.train.weights
    with _forgiving():
        client, experiment = client_and_experiment(stage)
        found = _search(client, experiment, WEIGHTS, weights)
        run = found[0] if found else _create(client, experiment, stage, {WEIGHTS: weights})
        run_id: str = run.info.run_id
        curves = [point for epoch in results.training for point in _points(epoch_metrics(epoch), epoch.epoch)]
        for file, content, points in (
            # the same weights have the same curves: training.csv differs in its seconds at most
            (Epoch.file, weights, curves),
            (TrainResult.file, weights, _points(train_metrics(results.train))),
            (AttackResult.file, _digest(folder / AttackResult.file), _points(attack_metrics(results.attack))),
            (DetectResult.file, _digest(folder / DetectResult.file), _points(detect_metrics(results.detect))),
            *_certificates(folder, results),
        ):
            if run.data.tags.get(f"{LOGGED}.{file}") != content:
                client.log_batch(run_id, metrics=points)
                client.set_tag(run_id, f"{LOGGED}.{file}", content)
        if artifacts:
            content = _digest(*sorted(folder.iterdir()))
            if run.data.tags.get(f"{LOGGED}.artifacts") != content:
                _log_model_artifacts(client, run_id, stage, results)
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
        return f"{redacted(server)}/#/experiments/{experiment}/runs?{urlencode(query, quote_via=quote)}"
    return None


def record_pipeline(stage: Stage) -> bool:
    """Record every selected model completely, and the comparison as the parent run of this pipeline run.

    A pipeline run is known by the content of its results: repeating it changes nothing, new results make a new parent.
    Returns whether all of it is in the store now. TrlError for a result file that is missing or broken, once the models
    that have all of theirs are recorded.
    """
    from trl.report import text_table

    params, folder = stage.params, stage.paths.metrics
    stages = [Stage(params, stage.recipe_name, method, seed) for method in params.methods for seed in params.seeds]
    models: list[ModelResults] = []
    runs: list[str | None] = []
    errors: list[TrlError] = []
    for child in stages:
        try:
            models.append(load_model_results(folder, child.method, child.seed, child.method in params.certify))
            runs.append(record_model(child, models[-1], artifacts=True))
        except TrlError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    results = collect(folder, params.methods, params.seeds, models, params.ensembles)
    with _forgiving():
        client, experiment = client_and_experiment(stage)
        folders = [child.model_paths.metrics for child in stages]
        folders += [stage.paths.ensemble(name) for name in params.ensembles]
        content = _digest(*(file for folder in folders for file in sorted(folder.iterdir())))
        found = _search(client, experiment, PIPELINE, content)
        if found:
            parent = found[0].info.run_id
        else:
            if not stage.paths.report.is_dir():
                raise TrlError(f"{stage.paths.report}: missing; run the report stage, with `dvc repro`, or `dvc pull`")
            table = f"```\n{text_table(results)}\n```"
            tags = {PIPELINE: content, "trl.recipe": stage.recipe_name, "trl.kind": "pipeline", NOTE: table}
            name = f"{stage.recipe_name} {time.strftime('%Y-%m-%d %H:%M')}"
            parent = client.create_run(experiment, run_name=name, tags=with_context(tags)).info.run_id
            client.log_artifacts(parent, str(stage.paths.report), "report")
            client.log_dict(parent, params.model_dump(mode="json")["recipes"][stage.recipe_name], "recipe.yaml")
            client.log_param(parent, "methods", ", ".join(params.methods))
            client.log_param(parent, "seeds", ", ".join(map(str, params.seeds)))
            for ensemble, together in results.ensembles.items():
                client.log_batch(parent, metrics=_points(ensemble_metrics(ensemble, together)))
            client.set_terminated(parent, "FINISHED")
        for run_id in filter(None, runs):
            client.set_tag(run_id, "mlflow.parentRunId", parent)
        return None not in runs
    return False


def _search(client: "MlflowClient", experiment: str, tag: str, value: str) -> "list[Run]":
    return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time"]))


def _create(client: "MlflowClient", experiment: str, stage: Stage, tags: dict[str, str]) -> "Run":
    """A new run of a model, with its parameters and its data set."""
    from mlflow.entities import DatasetInput, InputTag, Param

    recipe, model = stage.recipe.checked(), f"{stage.method}-{stage.seed}"
    tags = {**tags, "trl.recipe": stage.recipe_name, "trl.kind": "model"}
    description = _description(stage.paths.data / "data.json")
    run = client.create_run(experiment, run_name=f"{stage.recipe_name}/{model}", tags=with_context(tags))
    sections = {
        "recipe": stage.recipe_name,
        "method": stage.method,
        "seed": stage.seed,
        "data": _flat_spec(recipe.data.model_dump()),
        "model": _flat_spec(recipe.model_of(stage.method).model_dump()),
        "threat": recipe.threat.model_dump(),
        "train": recipe.train_of(stage.method).model_dump(),
        "objective": _flat_spec(recipe.methods[stage.method].model_dump(exclude={"model", "weight_perturbation"})),
    }
    params = [Param(name, str(value)) for name, value in _flatten(sections)]
    client.log_batch(run.info.run_id, params=params)
    hash_tag = InputTag("dvc.md5", _dvc_hash(stage))
    client.log_inputs(run.info.run_id, [DatasetInput(_dataset(stage, description), [hash_tag])])
    return client.get_run(run.info.run_id)


def with_context(tags: Mapping[str, str]) -> dict[str, str]:
    """`tags`, and those by which MLflow says who ran which code; the address of its repository may hold a password."""
    from mlflow.tracking.context.registry import resolve_tags

    return {name: redacted(value) for name, value in resolve_tags(tags).items()}


def _description(path: Path) -> dict[str, Any]:
    """What the stage prepare says about the data set."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        raise TrlError(f"{path}: missing or damaged; run the prepare stage, with `dvc repro`, or `dvc pull`") from None
    return found


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


def _points(values: Mapping[str, float], step: int = 0) -> list[Any]:
    """As MLflow takes them; what does not exist is left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in values.items() if math.isfinite(value)]


def _log_model_artifacts(client: "MlflowClient", run_id: str, stage: Stage, results: ModelResults) -> None:
    from trl.report import save_figures

    paths = stage.model_paths
    client.log_artifacts(run_id, str(paths.metrics), "results")
    if paths.model.exists():  # not in a clone that has the results alone
        client.log_artifacts(run_id, str(paths.model), "model")
    with tempfile.TemporaryDirectory() as folder:
        save_figures(Results((stage.method,), (stage.seed,), (results,)), Path(folder))
        client.log_artifacts(run_id, folder, "figures")


def _certificates(folder: Path, results: ModelResults) -> Iterator[tuple[str, str, list[Any]]]:
    """What `record_model` logs of a model that was certified."""
    if results.certify:
        points = _points(certify_metrics(results.certify, results.certified))
        yield CertifyResult.file, _digest(folder / CertifyResult.file, folder / CertifiedPoint.file), points


def _digest(*files: Path) -> str:
    return hashlib.md5(b"".join(file.read_bytes() for file in files), usedforsecurity=False).hexdigest()
