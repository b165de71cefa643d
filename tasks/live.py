"""A model's run in MLflow while the model trains: its curves appear epoch by epoch, and it says how training ended."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tasks.metrics import epoch_metrics
from tasks.runs import (
    PROCESS,
    WEIGHTS,
    create_model_run,
    forgiving,
    log_curves,
    points,
    search,
    this_process,
    training_settings,
)
from tasks.stage import Stage
from tasks.store import client_and_experiment
from trl.results import Epoch

if TYPE_CHECKING:
    from mlflow import MlflowClient


class ModelRun:
    """The run of the training whose hash is `fingerprint`; does nothing while there is no store."""

    def __init__(self, stage: Stage, fingerprint: str) -> None:
        self.stage, self.fingerprint = stage, fingerprint
        self._client: MlflowClient | None = None
        self._run_id, self._logged = "", 0.0

    @classmethod
    @contextlib.contextmanager
    def open(cls, stage: Stage, fingerprint: str) -> Iterator["ModelRun"]:
        """Begin or resume the run; an error ends it as FAILED, Ctrl-C and SIGTERM as KILLED."""
        run = cls(stage, fingerprint)
        former = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            run.begin()
            yield run
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending already
            run.stop("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            signal.signal(signal.SIGTERM, former)

    def begin(self) -> None:
        """Open a run, or resume the one that an interrupted training left.

        A training that led to weights before has its run, and is repeated without one.
        """
        with forgiving():
            client, experiment = client_and_experiment(self.stage)
            found = search(client, experiment, training=self.fingerprint)
            if any(WEIGHTS in run.data.tags for run in found):
                return
            settings = training_settings(self.stage)
            new = partial(create_model_run, client, experiment, self.stage, settings, training=self.fingerprint)
            run = found[0] if found else new()
            self._run_id, self._logged = run.info.run_id, run.data.metrics.get("train/epoch", 0)
            client.set_tag(self._run_id, PROCESS, this_process())
            client.update_run(self._run_id, status="RUNNING")
            self._client = client

    def log(self, epoch: Epoch) -> None:
        """Log one epoch, unless an interrupted training has logged it already."""
        if self._client is None or epoch.epoch <= self._logged:
            return
        client, self._client = self._client, None  # a store that fails once is left alone until the end
        with forgiving():
            client.log_batch(self._run_id, metrics=points(epoch_metrics(epoch), epoch.epoch))
            self._client = client

    def end(self, weights: str, epochs: Sequence[Epoch]) -> None:
        """Complete the curves, and tie the run to the weights it led to: `record_model` finds it by them."""
        if not self._run_id:
            return
        with forgiving():
            client, experiment = client_and_experiment(self.stage)
            if search(client, experiment, weights=weights):  # another training, say of other code, led to the same
                client.set_terminated(self._run_id, "FINISHED")
                client.delete_run(self._run_id)
                return
            log_curves(client, client.get_run(self._run_id), epochs)
            client.set_tag(self._run_id, WEIGHTS, weights)
            client.set_terminated(self._run_id, "FINISHED")

    def stop(self, status: str) -> None:
        """End the run without weights."""
        if self._run_id:
            with forgiving():
                client, _ = client_and_experiment(self.stage)
                client.set_terminated(self._run_id, status)
