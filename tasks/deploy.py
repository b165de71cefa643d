"""Register a model with its detector in MLflow, and make it the one that is served if it beats what was served.

A deployment is known by what it is made of, its key, which marks all that it adds to the store. So one that fails, is
interrupted or killed can be undone, at once or by the next try.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trl
from tasks.stage import Stage, run_stage
from tasks.store import client_and_experiment
from tasks.tracking import record_model
from tasks.weights import check_weights
from trl.common.errors import TrlError, in_one_line
from trl.common.progress import say
from trl.results import ModelResults, load_model_results

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

    from trl.detection.guard import Guard

CHAMPION = "champion"  # the alias that is served
KEY, FORMER, FIGURE, VALUE = "trl.deployment", "trl.former", "trl.figure", "trl.value"
NEEDED = ("mlflow", "numpy", "pandas", "pydantic", "safetensors", "scikit-learn", "scipy", "torch", "tqdm")


@dataclass(frozen=True)
class Candidate:
    """A model with its detector, ready to be deployed: its figure on validation images and the `tags` that say all."""

    stage: Stage
    results: ModelResults
    guard: "Guard"
    value: float
    tags: dict[str, str]

    @property
    def name(self) -> str:
        """Of the registered model."""
        return self.stage.params.deploy.name


def deploy(stage: Stage, method: str | None = None, seed: int | None = None) -> None:
    """Register the best of the models that are asked for; the champion it becomes only by a better figure."""
    candidate = load_candidate(*choose(stage, method, seed))
    run = record_model(candidate.stage, candidate.results)
    if run is None:
        raise TrlError("nothing was deployed, since MLflow cannot be used, as the warning above says")
    with _readable():
        client, experiment = client_and_experiment(stage)
        if version := _deployed(client, experiment, candidate):
            former, said = None, "is registered already; nothing was changed"
        else:
            _undo(client, experiment, candidate)  # what a killed deployment of the same left
            former = _champion(client, candidate.name)
            _check_comparable(candidate, former)
            with _undone_if_it_fails(client, experiment, candidate):
                version = _register(client, experiment, run, candidate, former)
            said = "registered"
        champion = _champion(client, candidate.name)
    say(f"{candidate.name} version {version.version} {said}: {_describe(version)}")
    if champion is None:
        say(f"champion: none; in MLflow, give the alias {CHAMPION} to the version that is to be served")
        return
    if former is not None and former.version != champion.version:
        say(f"champion: version {champion.version}; before, version {former.version}: {_describe(former)}")
    else:
        say(f"champion: version {champion.version}: {_describe(champion)}")
    store = "" if os.environ.get("MLFLOW_TRACKING_URI") else "MLFLOW_TRACKING_URI=sqlite:///mlflow.db "
    say(f"serve it: {store}mlflow models serve -m models:/{candidate.name}@{CHAMPION} --env-manager local -p 5001")


def choose(stage: Stage, method: str | None, seed: int | None) -> tuple[Stage, ModelResults]:
    """The model with the best figure on validation images, and all that was measured on it; among equals the first."""
    params = stage.params
    methods = params.compared if method is None else (method,)
    seeds = params.seeds if seed is None else (seed,)
    models = [load_model_results(stage.paths.metrics, m, s) for m in methods for s in seeds]
    best = max(models, key=lambda model: _value(stage, model))
    return Stage(params, stage.recipe_name, best.method, best.seed), best


def load_candidate(stage: Stage, results: ModelResults) -> Candidate:
    """Load and check the model and its detector; TrlError for files that are missing or do not belong together."""
    from trl.detection.guard import Guard

    paths, detect = stage.model_paths, results.detect
    guard = Guard.load(paths.model, paths.detector)
    weights = check_weights(paths)
    if detect.deployed.threshold != guard.calibration.threshold:
        raise TrlError(f"{paths.metrics}: measured with another detector than {paths.detector} holds; run `dvc repro`")
    detector = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(paths.detector.iterdir()))).hexdigest()
    value = _value(stage, results)
    tags = {
        KEY: f"{stage.params.deploy.name} {weights[:16]} {detector[:16]}",
        "trl.recipe": stage.recipe_name,
        "trl.data": stage.recipe.data.name,
        "trl.method": stage.method,
        "trl.seed": str(stage.seed),
        "trl.threat": f"{stage.recipe.threat.norm} {detect.epsilon:g}",
        "trl.detector": detect.detector,
        "trl.weights": weights,
        FIGURE: stage.params.deploy.figure,
        VALUE: str(value),
        "trl.threshold": str(guard.calibration.threshold),
        "trl.false_alarms": str(guard.calibration.false_alarms),
    }
    return Candidate(stage, results, guard, value, tags)


def save_served(candidate: Candidate, folder: Path, model_id: str, run: str) -> None:
    """Write the candidate as an MLflow model of plain files: weights, JSON and source code; nothing is pickled."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    paths = candidate.stage.model_paths
    shape: tuple[int, ...] = candidate.guard.model.shape  # type: ignore[assignment]
    outputs = {"class": "long", "probability": "double", "adversarial_score": "double", "adversarial": "boolean"}
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, *shape), "images")]),
        Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
    )
    # a local version, such as 2.9.0+cpu, is in no package index
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in NEEDED}
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=Model(model_uuid=model_id, model_id=model_id, run_id=run),
        python_model=str(Path(__file__).with_name("serving.py")),
        code_paths=[str(Path(trl.__file__).parent)],
        artifacts={"model": str(paths.model), "detector": str(paths.detector)},
        signature=signature,
        input_example={"images": np.full((1, *shape), 0.5, np.float32)},
        pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        metadata=candidate.tags,
    )


def _register(
    client: "MlflowClient", experiment: str, run: str, candidate: Candidate, champion: "ModelVersion | None"
) -> "ModelVersion":
    """The steps of a deployment; the last one marks the logged model READY, and so the whole as complete."""
    from mlflow.entities import LoggedModelOutput

    name, key = candidate.name, {KEY: candidate.tags[KEY]}
    model = client.create_logged_model(experiment, "detector", run, candidate.tags, model_type="detector")
    with tempfile.TemporaryDirectory() as folder:
        save_served(candidate, Path(folder, "model"), model.model_id, run)
        client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, key, "Image classifiers, each with a detector of adversarial images.")
    tags = candidate.tags | ({FORMER: str(champion.version)} if champion else {})
    version = client.create_model_version(name, model.artifact_location, run, tags, model_id=model.model_id)
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})  # the pages of both show the other
    if champion is None or candidate.value > float(champion.tags[VALUE]):
        client.set_registered_model_alias(name, CHAMPION, version.version)
    client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])
    client.finalize_logged_model(model.model_id, "READY")
    return version


def _undo(client: "MlflowClient", experiment: str, candidate: Candidate) -> None:
    """Delete all that carries the candidate's key; the alias goes back to who had it."""
    name, key = candidate.name, candidate.tags[KEY]
    for version in _versions(client, candidate):
        held = client.get_model_version(name, version.version).aliases
        if CHAMPION in held and FORMER in version.tags:
            client.set_registered_model_alias(name, CHAMPION, version.tags[FORMER])
        client.delete_model_version(name, version.version)  # and with it its aliases
    for registered in client.search_registered_models(f"name = '{name}'"):
        if registered.tags.get(KEY) == key and not client.search_model_versions(f"name = '{name}'"):
            client.delete_registered_model(name)
    for model in _logged(client, experiment, candidate):
        client.delete_logged_model(model.model_id)


def _deployed(client: "MlflowClient", experiment: str, candidate: Candidate) -> "ModelVersion | None":
    """The version that holds exactly this model and detector, if its deployment was completed."""
    ready = any(str(model.status) == "READY" for model in _logged(client, experiment, candidate))
    versions = _versions(client, candidate)
    return versions[0] if ready and versions else None


def _versions(client: "MlflowClient", candidate: Candidate) -> "list[ModelVersion]":
    found = f"name = '{candidate.name}' and tags.`{KEY}` = '{candidate.tags[KEY]}'"
    return list(client.search_model_versions(found))


def _logged(client: "MlflowClient", experiment: str, candidate: Candidate) -> "list[LoggedModel]":
    return list(client.search_logged_models([experiment], f"tags.`{KEY}` = '{candidate.tags[KEY]}'"))


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    for registered in client.search_registered_models(f"name = '{name}'"):
        if CHAMPION in registered.aliases:
            return client.get_model_version(name, registered.aliases[CHAMPION])
    return None


def _check_comparable(candidate: Candidate, champion: "ModelVersion | None") -> None:
    """TrlError if the champion's figure says nothing about the candidate's."""
    if champion is None:
        return
    if VALUE not in champion.tags:
        why = "was not registered by this command and has no figure to beat"
    elif (held := _measure(champion.tags)) != (ours := _measure(candidate.tags)):
        why = f"was chosen by {held}, this model by {ours}, which cannot be compared"
    else:
        return
    raise TrlError(
        f"{candidate.name}: its champion, version {champion.version}, {why}: set another deploy.name in params.yaml"
    )


def _measure(tags: Mapping[str, str]) -> str:
    """What a champion and its challenger must have in common."""
    return f"{tags[FIGURE]} on {tags['trl.data']} under {tags['trl.threat']}"


def _describe(version: "ModelVersion") -> str:
    tags = version.tags
    return (
        f"{tags.get('trl.recipe')} {tags.get('trl.method')}-{tags.get('trl.seed')} with {tags.get('trl.detector')}, "
        f"{tags.get(FIGURE)} {float(tags.get(VALUE, 'nan')):.3f} on validation images"
    )


def _value(stage: Stage, results: ModelResults) -> float:
    """The figure by which a model is chosen."""
    value: float = getattr(results.detect.validation, stage.params.deploy.figure)
    return value


@contextmanager
def _undone_if_it_fails(client: "MlflowClient", experiment: str, candidate: Candidate) -> Iterator[None]:
    """Undo the deployment inside if it does not come to its end, whatever the reason."""
    try:
        yield
    except BaseException as reason:
        try:
            _undo(client, experiment, candidate)
        except Exception as error:
            raise TrlError(
                f"the deployment failed ({type(reason).__name__}) and could not be undone ({in_one_line(error)}): "
                "repeat the command, which undoes it first"
            ) from error
        raise


@contextmanager
def _readable() -> Iterator[None]:
    """What the store, its driver or the network raises, in one line."""
    try:
        yield
    except TrlError:
        raise
    except Exception as error:
        raise TrlError(f"nothing was deployed: MLflow: {in_one_line(error)}") from error


if __name__ == "__main__":
    sys.exit(run_stage(deploy, per_model="optional"))
