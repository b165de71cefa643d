"""The flow `trl`: run every stage of dvc.yaml as a task, in parallel where possible, then record it in MLflow."""

import atexit
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flows.arguments import parse

if __name__ == "__main__":
    GIVEN = parse()  # before the slow imports, so that --help and wrong options are fast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifact import publish, run_name
from flows.parameters import PARAMS, override
from flows.pipeline import Pipeline
from flows.server import TemporaryServer
from flows.snapshot import Snapshot, snapshot
from flows.stages import Workers, is_cached, is_hint, last_error, repro, worker_environments
from tasks.paths import RecipePaths
from tasks.redaction import error_line
from trl.common.errors import TrlError
from trl.config import Params, load_params
from trl.report import load_results, text_table

NEXT = """\
make ui    serves MLflow's pages, unless `make up` does
make run   reruns only what a change of params.yaml or the code affects"""


def _is_news(record: logging.LogRecord) -> bool:
    """False for records that repeat a state, and for Prefect's traceback of a plain Failed state."""
    if record.exc_info:
        error = record.exc_info[1]
        return error is not None and not isinstance(error, FailedRun)
    return not record.getMessage().startswith(("Finished in state NotReady", "Finished in state Completed('"))


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_is_news)


@task(cache_policy=NO_CACHE, task_run_name="configure")
def configure(folder: Path, overrides: list[str]) -> Any:
    """Write `overrides` to params.yaml in `folder`; returns the new parameters, or a Failed state with the error."""
    try:
        return override(folder, overrides)
    except TrlError as error:
        return Failed(message=f"error: {error}")


@task(name="stage", cache_policy=NO_CACHE, task_run_name="{name}")
def run(name: str, pipeline: Pipeline, workers: Workers) -> State[Any]:
    """Bring one stage up to date in the snapshot, and its results to the project; the state is that of `_outcome`."""
    waiting = partial(get_run_logger().info, "waiting for another run that is at this very stage")
    with pipeline.snapshot.alone(pipeline.inputs(name), lambda: workers.stopped, waiting) as lock:
        if lock is None:
            return Cancelled(message="interrupted")
        # The report prints the comparison, which the flow shows at its end.
        state = _outcome(workers, repro(name), logging.DEBUG if name.startswith("report@") else logging.INFO, lock)
    if state.is_completed():
        pipeline.bring_back([name])
    return state


@task(name="stage", cache_policy=NO_CACHE, task_run_name="{name}")
def skip(name: str) -> State[Any]:
    """A stage that is up to date."""
    return Completed(name="Cached")


@task(name="stage", cache_policy=NO_CACHE, task_run_name="record")
def record(workers: Workers) -> State[Any]:
    """Record the snapshot's results in MLflow."""
    return _outcome(workers, [sys.executable, "-m", "tasks.record"], logging.INFO)


def _outcome(workers: Workers, command: list[str], level: int, lock: int | None = None) -> State[Any]:
    """Run one command; the state is Cached if DVC had nothing to do, Failed with its error line, or Cancelled.

    Its result is the output, in lines.
    """
    log = get_run_logger()
    outcome = workers.run(command, lambda line: None if is_hint(line) else log.log(level, "%s", line), lock)
    if workers.stopped:
        return Cancelled(message="interrupted")
    if outcome.status:
        return Failed(message=last_error(outcome.lines) or f"error: exit status {outcome.status}")
    return Completed(name="Cached") if is_cached(outcome.lines) else Completed(data=outcome.lines)


@task(cache_policy=NO_CACHE, task_run_name="compare")
def compare(folder: Path, params: Params, recorded: list[str], report: str) -> Any:
    """Compare all selected models: returns a text table and where to look, and stores an artifact of the flow run."""
    try:
        metrics = folder / RecipePaths(params.recipe).metrics
        results = load_results(metrics, params.compared, params.seeds, params.certify, params.ensembles)
    except TrlError as error:
        return Failed(message=f"error: {error}")
    return f"{text_table(results)}\n\n{publish(params, results, recorded, report)}"


@flow(name="trl", flow_run_name=run_name)
def full(
    recipe: str | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    overrides: list[str] | None = None,
) -> State[Any]:
    """Bring every stage up to date, record the results in MLflow and show the comparison.

    The run works on a snapshot of the project, and arguments change only the params.yaml there; `overrides` use Hydra's
    syntax, such as `recipes.digits.train.epochs=10`. Results that the project's own params.yaml asks for come back to
    it. If a stage fails, the stages that need it do not run; all others do.
    """
    given = {"recipe": recipe, "methods": methods, "seeds": seeds}
    changes = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    try:
        with snapshot(Path.cwd()) as made:
            return _run_in(made, [*changes, *(overrides or [])])
    except TrlError as error:
        return Failed(message=f"error: {error}")


def _run_in(made: Snapshot, overrides: list[str]) -> State[Any]:
    """Run all stages in a snapshot."""
    log = get_run_logger()
    configured = configure(made.root, overrides, return_state=True)
    if not configured.is_completed():
        return Failed(message=configured.message)
    params: Params = configured.result()
    environments = worker_environments(os.environ, _gpus(), _cores())
    workers = Workers(environments, made.root, made.environment(os.environ), made.lock)
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=len(environments))
    with contextlib.closing(Pipeline(made)) as pipeline, runner:
        log.info("recipe %s: %d stages, up to %d at a time", params.recipe, len(pipeline.graph), len(environments))
        try:
            states = _run_stages(runner, workers, pipeline)
            pipeline.bring_back(list(pipeline.left))  # again: what another program had locked may be free by now
            if pipeline.left:
                log.info("warning: %s", _left(pipeline.left))
            if failure := _failure(states):
                return Failed(message=failure)
            recorded = record(workers, return_state=True)
        finally:  # leave nothing running if interrupted
            workers.stop()
    report = RecipePaths(params.recipe).report / "index.html"
    place = "in MLflow, with the comparison" if f"report@{params.recipe}" in pipeline.left else str(report)
    lines: Any = recorded.result() if recorded.is_completed() else []
    compared = compare(made.root, params, lines, place, return_state=True)
    if failure := _failure({"record": recorded, "compare": compared}):
        return Failed(message=failure)
    cached = sum(state.name == "Cached" for state in states.values())
    summary = f"{len(states) - cached} stages ran, {cached} were up to date"
    log.info("%s\n\n%s\n%s\n", summary, compared.result(), NEXT)
    return Completed(message=summary)


def _run_stages(runner: ThreadPoolTaskRunner[Any], workers: Workers, pipeline: Pipeline) -> dict[str, State[Any]]:
    """Run every stage as soon as those it needs have succeeded; returns the final states."""
    current = pipeline.up_to_date()
    pipeline.bring_back(current)
    futures: dict[str, Any] = {}
    for stage, needs in pipeline.graph.items():
        arguments = {"name": stage} if stage in current else {"name": stage, "pipeline": pipeline, "workers": workers}
        waited_for = [futures[need] for need in needs]
        futures[stage] = runner.submit(skip if stage in current else run, arguments, wait_for=waited_for)
    for future in futures.values():
        future.wait()
    return {stage: future.state for stage, future in futures.items()}


def _left(left: dict[str, str]) -> str:
    """That results did not come back to the project, in one line."""
    names = {why: [name for name in left if left[name] == why] for why in left.values()}
    told = "; ".join(f"{why}: {', '.join(some[:3])}{', …' * (len(some) > 3)}" for why, some in names.items())
    return (
        f"{len(left)} results are in DVC's cache and MLflow, but not in this folder, whose params.yaml or code is not "
        f"that of this run ({told}); with the same, another run restores them"
    )


def _failure(states: dict[str, State[Any]]) -> str:
    """What failed, in one line; "" if everything completed."""
    failed = [f"{name}: {s.message}" for name, s in states.items() if s.is_failed() or s.is_crashed()]
    waiting = sum(not state.is_completed() for state in states.values()) - len(failed)
    return "; ".join(failed + [f"{waiting} that need it did not run"] * (waiting > 0))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(given: dict[str, Any]) -> int:
    """Run the flow in this process, without a deployment; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `kill` also stops the temporary server
    atexit.register(gc.freeze)  # skip the final garbage collection, which takes a second
    try:
        with _server():
            return int(not full(**given, return_state=True).is_completed())
    except (TrlError, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: repeat the command to resume", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """Prefect's server: the configured one, else a temporary one. PyTorch is imported while it starts."""
    if PREFECT_API_URL.value():
        yield
        return
    print("starting Prefect …", flush=True)
    # links to runs on a temporary server are useless
    logging.getLogger("prefect.flow_runs").addFilter(lambda record: not record.getMessage().startswith("View at "))
    server = TemporaryServer()
    ahead = threading.Thread(target=_import_ahead)
    ahead.start()
    server.wait()
    ahead.join()
    with temporary_settings(updates={PREFECT_API_URL: server.api}):
        yield


def _import_ahead() -> None:
    """Import what checks the parameters; errors in them are reported later."""
    with contextlib.suppress(TrlError):
        load_params(PARAMS)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
