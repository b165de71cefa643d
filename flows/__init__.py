"""Prefect: `full.py` defines the flow `trl`; each of its tasks runs one DVC stage."""

import os

try:
    import tasks  # noqa: F401
except ImportError as error:  # its libraries are missing
    raise ImportError(error.msg, name=__name__) from None

# Read by Prefect when it is first imported: one short console line per event.
for _kind, _layout in {
    "FLOW_RUN": "%(asctime)s | trl | %(message)s",
    "TASK_RUN": "%(asctime)s | %(task_run_name)s | %(message)s",
}.items():
    os.environ.setdefault(f"PREFECT_LOGGING_FORMATTERS_STANDARD_{_kind}_FMT", _layout)
