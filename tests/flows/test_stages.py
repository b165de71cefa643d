import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.stages import Workers, is_cached, is_hint, last_error, repro, worker_environments
from trl.common.errors import TrlError


def test_dvc_runs_in_this_interpreter_and_waits_for_its_lock() -> None:
    assert repro("s") == [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "s"]


@pytest.mark.parametrize(
    "stage",
    ["train@digits-x|touch PWNED|cat-0", "train@digits-../../escaped-0", "-f", "", "train@", "train@a\n", "a;b"],
)
def test_no_command_is_made_of_a_stage_that_a_shell_reads_otherwise(stage: str) -> None:
    with pytest.raises(TrlError, match=r"stage .* cannot be used: rename it") as caught:
        repro(stage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "cached"),
    [
        ("Stage 'train@d-um-0' didn't change, skipping", True),
        ("'data.dvc' didn't change, skipping", True),
        ("Stage 'train@d-um-0' is cached - skipping run, checking out outputs", True),
        ("Running stage 'train@d-um-0':", False),
        ("the stage didn't change, skipping", False),
    ],
)
def test_cached_is_what_dvc_did_not_run(line: str, cached: bool) -> None:
    assert is_cached(["before", line]) == cached


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("", True),
        ("To track the changes with git, run:", True),
        ("\tgit add dvc.lock", True),
        ("Use `dvc push` to send your updates to remote storage.", True),
        ("Updating lock file 'dvc.lock'", True),
        ("> python -m tasks.train", False),
        ("epoch 1/2  loss 2.3", False),
        ("error: To track", False),
        ("ERROR: failed to reproduce 'x'", False),
    ],
)
def test_hints_are_what_dvc_says_to_a_person(line: str, hint: bool) -> None:
    assert is_hint(line) == hint


def test_the_stage_s_own_last_error_comes_first() -> None:
    dvc = "ERROR: failed to reproduce 'x': exited with 1"
    assert last_error(["error: one", "error: two", "an error: three", dvc]) == "error: two"
    assert last_error(["Traceback", dvc]) == dvc
    assert last_error(["all is well"]) == ""


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("/a is not a git repository", "DVC needs one: run `git init` here, or work in a clone"),
        ("unexpected error - [Errno 28] No space left on device", "free space, then repeat"),
        (
            "unexpected error - [Errno 30] Read-only file system: '.dvc/tmp/lock'",
            "make it writable, or work in a clone",
        ),
    ],
)
def test_an_error_of_dvc_comes_with_its_remedy(said: str, remedy: str) -> None:
    assert last_error([f"ERROR: {said}"]).startswith(f"ERROR: {said}: {remedy}")
    assert last_error([f"ERROR: {said}", "error: own"]) == "error: own"


BUSY = """
import pathlib, sys
from contextlib import ExitStack
from dvc.fs import localfs
from dvc.rwlock import rwlock
with rwlock(sys.argv[1], localfs, "dvc repro", [], [sys.argv[1] + "/file"], False):
    print("mine", flush=True)
    sys.stdin.readline()
"""
WANT = """
import sys
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.rwlock import rwlock
try:
    with rwlock(sys.argv[1], localfs, "dvc repro", [sys.argv[1] + "/file"], [], False):
        print("done")
except DvcException as error:
    sys.exit(f"ERROR: failed to reproduce 's': {error}")  # as DVC says it
"""


def test_a_run_waits_for_another_that_uses_the_same_files(tmp_path: Path) -> None:
    """By DVC's own locks of files, which `--wait-for-lock` does not wait for."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*python(BUSY), str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == "mine\n"
        heard, outcomes = [], []

        def listen(line: str) -> None:
            if not is_hint(line):
                heard.append(line)
            if line.startswith("waiting"):
                other.stdin.write("\n")
                other.stdin.flush()
                threading.Thread(target=other.wait).start()  # as its shell would

        outcomes.append(Workers([{}]).run([*python(WANT), str(tmp_path)], listen))
    assert heard == [f"waiting for process {other.pid}, another run that uses the same files", "done"]
    assert outcomes[0].status == 0


def cuda(environments: list[dict[str, str]]) -> list[str | None]:
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments]


def test_every_gpu_is_one_worker_s_own() -> None:
    assert cuda(worker_environments({}, 3, 8)) == ["0", "1", "2"]
    assert cuda(worker_environments({"CUDA_VISIBLE_DEVICES": "4,6"}, 2, 8)) == ["4", "6"]
    assert cuda(worker_environments({"TRL_WORKERS": "3"}, 2, 8)) == ["0", "1", "0"]
    assert cuda(worker_environments({"TRL_DEVICE": "cuda", "TRL_WORKERS": "1"}, 2, 8)) == ["0"]


def test_processes_that_share_a_training_have_a_gpu_each() -> None:
    assert cuda(worker_environments({"TRL_PROCESSES": "2"}, 4, 8)) == ["0,1", "2,3"]
    assert cuda(worker_environments({"TRL_PROCESSES": "2", "TRL_WORKERS": "2"}, 3, 8)) == ["0,1", "2,0"]
    assert cuda(worker_environments({"TRL_PROCESSES": "4"}, 2, 8)) == ["0,1"]
    assert worker_environments({"TRL_PROCESSES": "2"}, 0, 4) == [{"OMP_NUM_THREADS": "2"}] * 2


def test_a_chosen_device_is_left_to_the_stages() -> None:
    assert cuda(worker_environments({"TRL_DEVICE": "cuda:1"}, 2, 8)) == [None]
    assert cuda(worker_environments({"TRL_DEVICE": "cpu"}, 2, 3)) == [None] * 3


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, "1"), (2, 2, "1"), (4, 4, "1"), (64, 4, "16")])
def test_on_the_cpu_workers_share_the_cores(cores: int, workers: int, threads: str) -> None:
    assert worker_environments({}, 0, cores) == [{"OMP_NUM_THREADS": threads}] * workers
    assert worker_environments({"OMP_NUM_THREADS": "5"}, 0, cores) == [{"OMP_NUM_THREADS": "5"}] * workers


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_a_wrong_number_of_workers_is_explained(wrong: str) -> None:
    with pytest.raises(TrlError, match=f"TRL_WORKERS={wrong}"):
        worker_environments({"TRL_WORKERS": wrong}, 0, 2)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_command_has_its_worker_s_variables_and_its_output_comes_line_by_line() -> None:
    heard: list[str] = []
    code = "import os, sys; print(os.environ['MINE']); print('bad', file=sys.stderr); sys.exit(3)"
    outcome = Workers([{"MINE": "yes"}]).run(python(code), heard.append)
    assert (outcome.status, outcome.lines, heard) == (3, ["yes", "bad"], ["yes", "bad"])


def test_a_command_runs_in_the_workers_folder_and_keeps_their_lock_open(tmp_path: Path) -> None:
    lock, other = os.open(tmp_path / "lock", os.O_CREAT), os.open(tmp_path / "other", os.O_CREAT)
    code = (
        "import os; print(os.getcwd(), os.environ['SHARED'], "
        f"[os.path.sameopenfile(n, os.open(name, 0)) for n, name in (({lock}, 'lock'), ({other}, 'other'))])"
    )
    workers = Workers([{}], tmp_path, {"SHARED": "yes"}, lock)
    assert workers.run(python(code), lambda _: None, other).lines == [f"{tmp_path} yes [True, True]"]


def test_python_in_a_command_is_this_interpreter() -> None:
    outcome = Workers([{}]).run(["sh", "-c", "command -v python"], lambda _: None)
    assert Path(outcome.lines[0]).parent == Path(sys.executable).parent


def test_commands_run_side_by_side_but_each_worker_has_one(tmp_path: Path) -> None:
    workers = Workers([{"W": "a"}, {"W": "b"}])
    # Each waits for the other's file: two at a time end at once, one at a time would not.
    code = (
        "import os, pathlib, sys, time; other = {'a': 'b', 'b': 'a'}[os.environ['W']]\n"
        f"folder = pathlib.Path({str(tmp_path)!r}); (folder / os.environ['W']).touch(); end = time.time() + 20\n"
        "while not (folder / other).exists() and time.time() < end: time.sleep(0.01)\n"
        "sys.exit(not (folder / other).exists())"
    )
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(workers.run(python(code), lambda _: None).status)) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0, 0]


def test_stop_interrupts_what_runs_with_its_children_and_lets_nothing_start() -> None:
    workers = Workers([{}])
    child = (  # it listens even where a shell's background job would not
        "import time, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('child', flush=True); time.sleep(60)"
    )
    # Like DVC: the parent ignores the interrupt and ends when its child has.
    parent = (
        "import signal, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); p.wait(); sys.exit(7)"
    )
    heard, outcomes = threading.Event(), []
    thread = threading.Thread(
        target=lambda: outcomes.append(workers.run([*python(parent), child], lambda _: heard.set()))
    )
    thread.start()
    assert heard.wait(20)
    family = psutil.Process().children(recursive=True)
    began = time.monotonic()
    workers.stop()
    thread.join(20)
    assert time.monotonic() - began < 9  # interrupted, not killed after the grace time
    assert outcomes[0].status == 7
    assert not psutil.wait_procs(family, 5)[1]
    assert workers.run(python("print('late')"), lambda _: None).lines == []


def test_stop_kills_what_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stages.GRACE_SECONDS", 0.2)
    workers, heard, outcomes = Workers([{}]), threading.Event(), []
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    thread = threading.Thread(target=lambda: outcomes.append(workers.run(python(code), lambda _: heard.set())))
    thread.start()
    assert heard.wait(20)
    workers.stop()
    thread.join(20)
    assert outcomes[0].status == -signal.SIGKILL


def test_lines_arrive_while_the_command_runs() -> None:
    code = "import sys; print('first'); sys.stdin.read(); import time; time.sleep(0.5)"
    arrived: list[float] = []
    Workers([{}]).run(python(code), lambda _: arrived.append(time.monotonic()))
    assert time.monotonic() - arrived[0] > 0.3


def test_nothing_of_the_environment_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    outcome = Workers([{}]).run(["sh", "-c", "echo $KEPT; echo $PATH"], lambda _: None)
    assert outcome.lines[0] == "yes"
    assert outcome.lines[1].endswith(os.environ["PATH"])
