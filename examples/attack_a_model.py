"""Attack a model: train a plain PyTorch network on digits, then measure how much of its accuracy survives."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trl import Linf, evaluate
from trl.attacks import build_attack
from trl.data import load_dataset

torch.manual_seed(0)
digits = load_dataset("digits")
x, y = digits.train.images / 255, digits.train.labels  # [0, 1]: a model normalises inside, if it needs to

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))  # any torch.nn.Module
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()

threat = Linf(0.1)  # each pixel may change by at most 0.1
attacks = {name: build_attack(name, threat) for name in ("fgsm", "pgd", "apgd")}  # to report: "autoattack", in minutes
result = evaluate(model, digits.test.images, digits.test.labels, attacks, threat)

summary = result.summary()
for name, figures in {"clean": summary["clean"], **summary["robust"]}.items():
    print(f"{name:<12}{figures['accuracy']:7.1%}   95 % interval {figures['low']:.1%} to {figures['high']:.1%}")
for warning in summary["warnings"]:  # signs of a mistake, or of gradient masking
    print(f"warning: {warning}")
