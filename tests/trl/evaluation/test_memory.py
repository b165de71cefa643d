"""What an evaluation holds in memory: the images that it returns, once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import resource, sys
import torch
from torch import nn
from trl.attacks import build_attack
from trl.evaluation import evaluate
from trl.threat import Linf

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
x = torch.randint(0, 256, (800, 3, 128, 128), dtype=torch.uint8)
y, threat = torch.zeros(800).long(), Linf(0.01)
model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
model[2].weight.data.zero_(), model[2].bias.data.copy_(torch.tensor([1.0, 0, 0, 0]))

def found(n, state):
    return evaluate(model, x[:n], y[:n], {"fgsm": build_attack("fgsm", threat)}, threat, 20, state=state)

found(140, None)  # as many as the search for signs looks at
before = peak()
images = found(800, sys.argv[1] or None).adversarials
print((peak() - before) / (images.numel() * 4))
"""


@pytest.mark.parametrize("state", [False, True])
def test_the_images_are_in_memory_once(tmp_path: Path, state: bool) -> None:
    arguments = [sys.executable, "-c", PROBE, str(tmp_path) if state else ""]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1.4
