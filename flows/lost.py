"""Flow runs that were killed together with their worker: Prefect goes on showing them as running."""

import psutil
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from flows.background import FLOW_RUN

BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def end_lost_runs(api: str, worker: str) -> int:
    """Mark every begun flow run of `worker` without a process on this machine as Crashed; returns how many there were.

    Runs of other workers, which may be on other machines, are left alone.
    """
    alive = {(p.info["environ"] or {}).get(FLOW_RUN) for p in psutil.process_iter(["environ"])}
    begun = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BEGUN)))
    with temporary_settings(updates={PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs(flow_run_filter=begun) if str(run.id) not in alive]
        lost = [run for run in runs if run.labels.get("prefect.worker.name") == worker]
        for run in lost:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed"))
    return len(lost)
