import subprocess
import sys

import psutil

# Prints its child's id; the child is a module that would run for ever.
PARENT = """
import subprocess, sys
command = [sys.executable, "-m", "flows.tied", "http.server", "--bind", "127.0.0.1", "0"]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_tied_program_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-uc", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive
