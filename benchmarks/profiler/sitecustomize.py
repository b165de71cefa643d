"""A profiler that Python loads at startup if this folder is on PYTHONPATH; at exit it reports where the time went.

`benchmarks.pipeline` uses it, so that the product needs no instrumentation. Each process appends one line of JSON to
the file TRL_PROFILE. Time counts for the innermost activity: importing mlflow while logging a model counts as import.
Uses as little of the standard library as possible, since its own time is measured, too.
"""

import atexit
import os
import resource
import sys
import threading
import time
from functools import wraps
from importlib.machinery import SourceFileLoader

# What is timed: module → function → name of the cause. For `run_stage`, the function passed to it is timed.
TIMED = {
    "dvc.stage.run": {"cmd_run": "command"},
    "flows.server": {"TemporaryServer.wait": "Prefect"},
    "flows.pipeline": {"Pipeline.__init__": "DVC", "Pipeline.up_to_date": "DVC", "Pipeline.bring_back": "DVC"},
    "flows.stages": {"Workers.run": "worker"},
    "tasks.stage": {"load_params": "parameters", "run_stage": "work"},
    "tasks.live": {"ModelRun.begin": "MLflow", "ModelRun.log": "MLflow", "ModelRun.end": "MLflow"},
    "tasks.tracking": {
        "client_and_experiment": "MLflow",
        "pages": "MLflow",
        "record_model": "MLflow",
        "record_pipeline": "MLflow",
    },
    "trl.data.splits": {"load_splits": "files", "save_splits": "files"},
    "trl.detectors.io": {"save_detector": "files"},
    "trl.common.files": {"write_atomic": "files", "write_csv": "files", "write_json": "files"},
    "trl.models.io": {"load_model": "files", "save_model": "files", "weights_sha256": "files"},
    "trl.report.figures": {"save_figures": "figures"},
    "trl.training.checkpoint": {"Checkpoint.load": "files", "Checkpoint.save": "files"},
}
EVENTS = ("command", "worker")  # recorded one by one, with start and end
LIBRARIES = {"torchvision": "torch", "functorch": "torch", "sklearn": "scipy"} | {
    name: name for name in ("dvc", "matplotlib", "mlflow", "prefect", "scipy", "torch")
}
MERGED_SECONDS = 0.05  # pieces of work with smaller gaps are merged


class Clock:
    """Wall and CPU seconds of one thread by cause."""

    def __init__(self) -> None:
        self.stack = ["other"]
        self.seconds: dict[str, list[float]] = {}
        self.pieces: list[list[float]] = []  # intervals of work
        self.last = time.time(), time.thread_time()

    def switch(self) -> None:
        now = time.time(), time.thread_time()
        total = self.seconds.setdefault(self.stack[-1], [0.0, 0.0])
        total[0] += now[0] - self.last[0]
        total[1] += now[1] - self.last[1]
        if self.stack[-1] == "work":
            if self.pieces and self.last[0] - self.pieces[-1][1] < MERGED_SECONDS:
                self.pieces[-1][1] = now[0]
            else:
                self.pieces.append([self.last[0], now[0]])
        self.last = now

    def push(self, cause: str) -> None:
        self.switch()
        self.stack.append(cause)

    def pop(self) -> None:
        self.switch()
        self.stack.pop()


class Local(threading.local):
    def __init__(self) -> None:
        self.clock = Clock()
        clocks.append(self.clock)


clocks: list[Clock] = []
local = Local()
events: list[tuple[str, float, float]] = []


def timed(function, cause):
    @wraps(function)
    def call(*arguments, **options):
        start = time.time()
        local.clock.push(cause)
        try:
            return function(*arguments, **options)
        finally:
            local.clock.pop()
            if cause in EVENTS:
                command = next((a for a in arguments if isinstance(a, list)), [])
                events.append((command[-1] if cause == "worker" else cause, start, time.time()))

    return call


def times_its_work(run_stage):
    return wraps(run_stage)(lambda work, **options: run_stage(timed(work, "work"), **options))


def exec_module(self, module):
    name = module.__name__
    enclosing = local.clock.stack[-1]
    outermost = "imports: others" if not enclosing.startswith("imports") else enclosing
    library = LIBRARIES.get(name.partition(".")[0])
    local.clock.push(f"imports: {library}" if library else outermost)
    try:
        execute(self, module)
    finally:
        local.clock.pop()
    for path, cause in TIMED.get(name, {}).items():
        owner = module
        *owners, attribute = path.split(".")
        for part in owners:
            owner = getattr(owner, part)
        found = vars(owner)[attribute]
        if isinstance(found, classmethod):
            setattr(owner, attribute, classmethod(timed(found.__func__, cause)))
        else:
            setattr(owner, attribute, times_its_work(found) if cause == "work" else timed(found, cause))


def born() -> float:
    """The time at which the process started."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:  # not Linux: time before this file is not measured
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def end() -> None:
    import json

    local.clock.switch()
    by_thread = [clock.seconds for clock in clocks]
    cpu: dict[str, float] = {}
    for seconds in by_thread:
        for cause, (_, used) in seconds.items():
            cpu[cause] = cpu.get(cause, 0.0) + used
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "argv": sys.orig_argv[1:],
        "stage": STAGE,
        "start": START,
        "end": time.time(),
        "wall": {"interpreter": LOADED - START} | {cause: wall for cause, (wall, _) in by_thread[0].items()},
        "cpu": {"interpreter": LOADED_CPU} | cpu,
        "cpu_total": time.process_time(),
        "children_cpu": children.ru_utime + children.ru_stime,
        "work": local.clock.pieces,
        "events": events,
    }
    with open(os.environ["TRL_PROFILE"], "a") as file:
        file.write(json.dumps(line) + "\n")


if os.environ.get("TRL_PROFILE"):
    START, LOADED, LOADED_CPU = born(), time.time(), time.process_time()
    if "repro" in sys.orig_argv:  # the stage's process inherits it from DVC's
        os.environ["TRL_PROFILE_STAGE"] = sys.orig_argv[-1]
    STAGE = os.environ.get("TRL_PROFILE_STAGE", "")
    execute = SourceFileLoader.exec_module
    SourceFileLoader.exec_module = exec_module
    atexit.register(end)
