"""MLflow's runs of trained models: what one holds, how it is found again, named and ended.

A run is a training evaluated under one budget of attacks. From its start it is known by its training, which is the hash
of all that the weights depend on; later by the SHA-256 of the weights it led to.
"""

import contextlib
import json
import math
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.metrics import epoch_metrics
from tasks.redaction import redacted
from tasks.stage import Stage
from trl.common.errors import TrlError
from trl.common.progress import say
from trl.results import Epoch, ModelResults

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WEIGHTS, PROCESS, KIND, RECIPE = "trl.weights", "trl.process", "trl.kind", "trl.recipe"
BUDGETS = ("attack.", "detect.")  # parameters of the evaluation
CHANGES = 3  # how many changed parameters a run's name lists


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Turn a failure of the store into a warning: the results are in files, whose own errors (TrlError) pass."""
    try:
        yield
    except TrlError:
        raise
    except Exception as error:  # whatever the store, its driver or the network raises
        why = redacted((str(error).strip().splitlines() or [type(error).__name__])[0])
        say(f"warning: MLflow was not updated ({why}); the results are safe, `python -m tasks.record` logs them later")


def search(client: "MlflowClient", experiment: str, **tags: str) -> "list[Run]":
    """The runs with all `tags`, whose names lose their `trl.`, the oldest first."""
    wanted = " and ".join(f"tags.`trl.{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment], wanted, order_by=["attributes.start_time"]))


def training_settings(stage: Stage) -> dict[str, Any]:
    """What a training was asked for, with all defaults filled in."""
    recipe = stage.recipe.checked().model_dump(mode="json")
    own, model = stage.recipe.checked(), {"recipe": stage.recipe_name, "method": stage.method, "seed": stage.seed}
    sections = {
        "data": recipe["data"],
        "model": own.model_of(stage.method).model_dump(mode="json"),
        "threat": recipe["threat"],
        "train": own.train_of(stage.method).model_dump(mode="json"),
    }
    objective = {k: v for k, v in recipe["methods"][stage.method].items() if k not in ("model", "weight_perturbation")}
    return {**model, **sections, "objective": objective}


def budget(results: ModelResults) -> dict[str, str]:
    """The parameters of both evaluations as they ran: attacks with their steps and restarts, images, precision, …"""
    attack, detect = results.attack, results.detect
    sections = {
        "attack": {**attack.settings, "epsilon": attack.epsilon, "samples": attack.clean.n},
        "detect": {**detect.settings, "epsilon": detect.epsilon},
    }
    return flatten(sections)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested sections as MLflow's parameters, by their paths in params.yaml."""
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: str(value)}
    if "name" in value and isinstance(value.get("options"), Mapping):  # a `Spec`
        value = {**{key: inner for key, inner in value.items() if key != "options"}, **value["options"]}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def create_model_run(
    client: "MlflowClient", experiment: str, stage: Stage, settings: Mapping[str, Any], **tags: str
) -> "Run":
    """A new run of a model, with the parameters and the data set of its training."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    own = {RECIPE: stage.recipe_name, KIND: "model", PROCESS: this_process()}
    own |= {f"trl.{name}": value for name, value in tags.items()}
    description = _description(stage.paths.data / "data.json")
    run_id = client.create_run(experiment, tags=with_context(own)).info.run_id
    data = Dataset(
        name=stage.recipe.data.name,
        digest=description["sha256"][:8],
        source_type="local",
        source=json.dumps({"uri": str(stage.paths.data)}),
        profile=json.dumps({k: v for k, v in description.items() if k != "sha256"}),
    )
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("dvc.md5", dvc_hash(stage))])])
    return log_params(client, client.get_run(run_id), stage, flatten(settings))


def with_context(tags: Mapping[str, str]) -> dict[str, str]:
    """`tags`, and those by which MLflow says who ran which code; the address of its repository may hold a password."""
    from mlflow.tracking.context.registry import resolve_tags

    return {name: redacted(value) for name, value in resolve_tags(tags).items()}


def log_params(client: "MlflowClient", run: "Run", stage: Stage, params: dict[str, str]) -> "Run":
    """Log a model's parameters, and say in the run's name which of them differ from the run before."""
    from mlflow.entities import Param

    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()])
    params = {**run.data.params, **params}
    same = {"kind": "model", "recipe": stage.recipe_name}
    model = {name: params[name] for name in ("method", "seed")}
    others = [r for r in search(client, run.info.experiment_id, **same) if model.items() <= r.data.params.items()]
    name = f"{stage.recipe_name}/{stage.method}-{stage.seed}"
    client.update_run(run.info.run_id, name=named(name, run, params, others))
    return client.get_run(run.info.run_id)


def named(name: str, run: "Run", params: Mapping[str, str], others: "Sequence[Run]") -> str:
    """`name`, and how `params` differ from those of the last of `others` that is older than `run`."""
    older = [other for other in others if other.info.start_time < run.info.start_time]
    former = older[-1].data.params if older else {}
    sections = {key.partition(".")[0] for key in former.keys() & params.keys()}
    now, then = ({k: v for k, v in p.items() if k.partition(".")[0] in sections} for p in (params, former))
    changes = [f"{key}={value}" for key, value in now.items() if value != then.get(key, value)]
    changes += [f"+{key.removesuffix('.name')}" for key in now if key.endswith(".name") and key not in then]
    changes += [f"-{key.removesuffix('.name')}" for key in then if key.endswith(".name") and key not in now]
    if len(changes) > CHANGES:
        changes = [*changes[:CHANGES], f"{len(changes) - CHANGES} more"]
    return f"{name} ({', '.join(changes)})" if changes else name


def log_curves(client: "MlflowClient", run: "Run", epochs: Sequence[Epoch]) -> None:
    """Log the epochs that the run does not hold yet."""
    logged = run.data.metrics.get("train/epoch", 0)
    missing = [point for e in epochs if e.epoch > logged for point in points(epoch_metrics(e), e.epoch)]
    client.log_batch(run.info.run_id, metrics=missing)


def points(values: Mapping[str, float], step: int = 0) -> list[Any]:
    """As MLflow takes them; what does not exist is left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in values.items() if math.isfinite(value)]


def this_process() -> str:
    """Names this process for as long as the machine runs; a number alone may be used again."""
    import psutil

    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def end_killed(client: "MlflowClient", experiment: str) -> None:
    """End the runs that were killed, on this machine, before they could do it."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if KIND in run.data.tags and not _may_run(run.data.tags.get(PROCESS, "")):
            client.set_terminated(run.info.run_id, "KILLED")


def _may_run(process: str) -> bool:
    """Whether the process that a run is of may still be there: it is alive, or is one of another machine."""
    import psutil

    host, _, rest = process.partition(" ")
    if not host or host != socket.gethostname():
        return bool(host)
    pid, created = rest.split()
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == created
    except psutil.Error:
        return False


def _description(path: Path) -> dict[str, Any]:
    """What the stage prepare says about the data set."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        raise TrlError(f"{path}: missing or damaged; run the prepare stage, with `dvc repro`, or `dvc pull`") from None
    return found


def dvc_hash(stage: Stage) -> str:
    """The prepared data's hash in dvc.lock; empty where the stages ran without DVC, or while DVC writes the file."""
    try:
        stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
        return str(stages[f"prepare@{stage.recipe_name}"]["outs"][0]["md5"])
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return ""
