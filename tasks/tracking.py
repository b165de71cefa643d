"""MLflow, the record: one run per trained model and budget of its evaluation, and one per pipeline run.

While a model trains, its curves are logged live (`tasks.live`); `python -m tasks.record` logs all else from the result
files, and the curves, too, if the store was lost. MLflow being out of reach never fails a stage: results are in files.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.metrics import (
    attack_metrics,
    certify_metrics,
    comparison_metrics,
    detect_metrics,
    ensemble_metrics,
    train_metrics,
)
from tasks.redaction import redacted
from tasks.runs import (
    BUDGETS,
    KIND,
    PROCESS,
    RECIPE,
    WEIGHTS,
    budget,
    create_model_run,
    end_killed,
    flatten,
    forgiving,
    log_curves,
    log_params,
    named,
    points,
    search,
    this_process,
    training_settings,
    with_context,
)
from tasks.stage import Stage
from tasks.store import client_and_experiment
from trl.common.errors import TrlError
from trl.results import (
    ADAPTIVE,
    AttackResult,
    CertifiedPoint,
    CertifyResult,
    DetectResult,
    ModelResults,
    Results,
    TrainResult,
    collect,
    load_model_results,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PIPELINE, LOGGED = "trl.pipeline", "trl.logged"
VIEW = "leaderboard"  # names the page's columns, in a tag of the experiment
NOTE = "mlflow.note.content"  # the text at the top of a run's page


def record_model(stage: Stage, results: ModelResults, *, artifacts: bool = False) -> str | None:
    """Make the run of a model and its evaluation complete: parameters, data set, and the figures of all result files.

    With `artifacts` also the result files themselves, weights and plots. Returns the run's id, or None if the store
    failed. What is logged already is left alone.
    """
    folder, weights = stage.model_paths.metrics, results.train.weights
    with forgiving():
        client, experiment = client_and_experiment(stage)
        run = _model_run(client, experiment, stage, results)
        run_id: str = run.info.run_id
        for file, content, metrics in (
            (AttackResult.file, _digest(folder / AttackResult.file), attack_metrics(results.attack)),
            (DetectResult.file, _digest(folder / DetectResult.file), detect_metrics(results.detect)),
            (TrainResult.file, weights, train_metrics(results.train)),
            *_certificates(folder, results),
        ):
            if run.data.tags.get(f"{LOGGED}.{file}") != content:
                client.log_batch(run_id, metrics=points(metrics))
                client.set_tag(run_id, f"{LOGGED}.{file}", content)
        log_curves(client, run, results.training)
        if artifacts:
            content = _digest(*sorted(folder.iterdir()))
            if run.data.tags.get(f"{LOGGED}.artifacts") != content:
                _log_model_artifacts(client, run_id, stage, results)
                client.set_tag(run_id, f"{LOGGED}.artifacts", content)
        if WEIGHTS not in run.data.tags:  # training ended while the store was away
            client.set_tag(run_id, WEIGHTS, weights)
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id
    return None


def _model_run(client: "MlflowClient", experiment: str, stage: Stage, results: ModelResults) -> "Run":
    """The run of these weights under this budget. A changed budget has a run of its own, which starts with the curves.

    Until its evaluation is recorded, a training's run has no budget, and takes the first.
    """
    train, wanted = results.train, budget(results)
    found = search(client, experiment, weights=train.weights)
    if not found and train.fingerprint:  # the store was away when training ended
        trained = search(client, experiment, training=train.fingerprint)
        found = [run for run in trained if WEIGHTS not in run.data.tags]
    file = f"{LOGGED}.{AttackResult.file}"
    same = _digest(stage.model_paths.metrics / AttackResult.file)
    for run in found:
        logged = {name: value for name, value in run.data.params.items() if name.startswith(BUDGETS)}
        if logged == wanted:
            return run
        if not logged and run.data.tags.get(file, same) == same:
            if "method" not in run.data.params:  # the store failed when the run began
                wanted = flatten(_settings(stage, results)) | wanted
            return log_params(client, run, stage, wanted)
    tags = {"weights": train.weights} | ({"training": train.fingerprint} if train.fingerprint else {})
    new = create_model_run(client, experiment, stage, _settings(stage, results), **tags)
    return log_params(client, new, stage, wanted)


def _settings(stage: Stage, results: ModelResults) -> dict[str, Any]:
    """What the training was asked for; a file of an earlier version does not say it, and PyTorch fills in defaults."""
    return results.train.settings or training_settings(stage)


def pages(stage: Stage, parent: str) -> dict[str, str]:
    """MLflow's pages for what was recorded, by what they show; none without a store."""
    with forgiving():
        _, experiment = client_and_experiment(stage)
        remote = os.environ.get("MLFLOW_TRACKING_URI", "")
        local = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"  # where `make up` and `make ui` serve it
        server = remote.rstrip("/") if remote.startswith("http") else local
        runs, layout = f"{redacted(server)}/#/experiments/{experiment}/runs", "workflowType=machine_learning"
        return {
            "this comparison": f"{runs}/{parent}?{layout}",
            # a filter or an order in the address would make the page ignore the view
            "models by worst-case accuracy": f"{runs}?{layout}&viewStateShareKey={VIEW}",
        }
    return {}


def record_pipeline(stage: Stage) -> str | None:
    """Record every selected model completely, and the comparison as the parent run of this pipeline run.

    A pipeline run is known by the content of its results: repeating it changes nothing, new results make a new parent.
    Returns the parent's id once all of it is in the store, else None. TrlError for a result file that is missing or
    broken, once the models that have all of theirs are recorded.
    """
    params, folder = stage.params, stage.paths.metrics
    stages = [Stage(params, stage.recipe_name, method, seed) for method in params.compared for seed in params.seeds]
    with forgiving():
        end_killed(*client_and_experiment(stage))
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
    results = collect(folder, params.compared, params.seeds, models, params.ensembles)
    with forgiving():
        client, experiment = client_and_experiment(stage)
        folders = [child.model_paths.metrics for child in stages]
        folders += [stage.paths.ensemble(name) for name in params.ensembles]
        content = _digest(*(file for folder in folders for file in sorted(folder.iterdir())))
        found = search(client, experiment, pipeline=content)
        parent: str = found[0].info.run_id if found else _record_comparison(client, experiment, stage, results, content)
        for run_id in filter(None, runs):
            client.set_tag(run_id, "mlflow.parentRunId", parent)
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(_view(results)))
        return None if None in runs else parent
    return None


def _record_comparison(client: "MlflowClient", experiment: str, stage: Stage, results: Results, content: str) -> str:
    """A new parent run with the comparison; the tag by which it is found comes last, when all else is there."""
    from mlflow.entities import Param

    from trl.report import markdown_table

    if not stage.paths.report.is_dir():
        raise TrlError(f"{stage.paths.report}: missing; run the report stage, with `dvc repro`, or `dvc pull`")
    former = search(client, experiment, kind="pipeline", recipe=stage.recipe_name)
    tags = {RECIPE: stage.recipe_name, KIND: "pipeline", PROCESS: this_process(), NOTE: markdown_table(results)}
    run = client.create_run(experiment, tags=with_context(tags))
    run_id: str = run.info.run_id
    methods, seeds = ", ".join(results.methods), ", ".join(map(str, results.seeds))
    settings = _comparison_settings(results)
    name = comparison_name(stage.recipe_name, results.methods, results.seeds)
    client.update_run(run_id, name=named(name, run, settings, former))
    settings |= {"recipe": stage.recipe_name, "methods": methods, "seeds": seeds}
    client.log_batch(run_id, points(comparison_metrics(results)), [Param(*item) for item in settings.items()])
    for ensemble, together in results.ensembles.items():
        client.log_batch(run_id, points(ensemble_metrics(ensemble, together)))
    client.log_artifacts(run_id, str(stage.paths.report), "report")
    client.log_dict(run_id, stage.recipe.model_dump(mode="json"), "recipe.yaml")
    client.set_tag(run_id, PIPELINE, content)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def comparison_name(recipe: str, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Names a pipeline run by what it compares."""
    plural = "s" if len(seeds) > 1 else ""
    return f"{recipe}: {', '.join(methods)}; seed{plural} {', '.join(map(str, seeds))}"


def _comparison_settings(results: Results) -> dict[str, str]:
    """The parameters of a comparison: what all models share, and each method's objective."""
    first = results.models[0]
    shared = {name: first.train.settings.get(name) for name in ("data", "model", "threat", "train")}
    objectives = {f"{m.method}/objective": m.train.settings.get("objective") for m in results.models}
    known = {name: section for name, section in {**shared, **objectives}.items() if section is not None}
    return flatten(known) | budget(first)


def _view(results: Results) -> dict[str, Any]:
    """What the leaderboard shows, in the terms of MLflow's page; left to itself, it orders columns by name."""
    robust = [f"robust/{name}" for name in reversed(results.attacks)]  # the worst case first
    auc = [f"detect/auc/{name}" for name in (*results.detection_attacks, ADAPTIVE)]
    columns = [f"metrics.`{name}`" for name in ("clean/accuracy", *robust, *auc, "reject/worst")]
    name, date = "attributes.`Run Name`", "runDateAndNestInfo"
    return {
        "searchFilter": f"tags.`{KIND}` = 'model'",
        # sorted by a metric, MLflow lists models themselves; sorted by date it folds them below their pipeline run
        "orderByKey": "metrics.`robust/worst`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [name, date, *columns],
        "columnWidths": {name: 360, **dict.fromkeys(columns, 130)},
    }


def _log_model_artifacts(client: "MlflowClient", run_id: str, stage: Stage, results: ModelResults) -> None:
    from trl.report import save_figures

    paths = stage.model_paths
    client.log_artifacts(run_id, str(paths.metrics), "results")
    if paths.model.exists():  # not in a clone that has the results alone
        client.log_artifacts(run_id, str(paths.model), "model")
    with tempfile.TemporaryDirectory() as folder:
        save_figures(Results((stage.method,), (stage.seed,), (results,)), Path(folder))
        client.log_artifacts(run_id, folder, "figures")


def _certificates(folder: Path, results: ModelResults) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What `record_model` logs of a model that was certified."""
    if results.certify:
        content = _digest(folder / CertifyResult.file, folder / CertifiedPoint.file)
        yield CertifyResult.file, content, certify_metrics(results.certify, results.certified)


def _digest(*files: Path) -> str:
    return hashlib.md5(b"".join(file.read_bytes() for file in files), usedforsecurity=False).hexdigest()
