"""Detect attacks, then let the attacker know the detector: how much of the detection is left?"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trl import Linf, build_detector, build_model
from trl.attacks import Both, Misclassified, Undetected, apgd
from trl.data import load_dataset
from trl.detectors import calibrate

torch.manual_seed(0)
digits, threat = load_dataset("digits"), Linf(0.2)
x, y = digits.train.images / 255, digits.train.labels
(x_train, x_validation), (y_train, _) = x.split([1147, 200]), y.split([1147, 200])

model = build_model("mlp", classes=10, shape=(1, 8, 8), width=64)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(x_train), y_train).backward()
    optimizer.step()
model.eval()

# fitted to natural images alone; the threshold rejects 1 % of natural images
detector = build_detector("gaussian")
with torch.no_grad():
    detector.fit(model.features(x_train), y_train)
    calibration = calibrate(detector.score(model.features(x_validation)), false_alarms=0.01)
undetected = Undetected(detector, calibration.threshold, calibration.scale)

x, y = digits.test.images[:200] / 255, digits.test.labels[:200]


@torch.no_grad()
def show(attack: str, images: Tensor) -> None:
    """How many images are misclassified, and how many are misclassified and missed by the detector."""
    wrong = model(images).argmax(1) != y
    missed = detector.score(model.features(images)) <= calibration.threshold
    print(f"{attack:<24}misclassified {wrong.float().mean():6.1%}   missed {(wrong & missed).float().mean():6.1%}")


show("natural", x)
show("knows the classifier", apgd(model, x, y, threat, steps=50))
show("knows the detector, too", apgd(model, x, y, threat, Both(Misclassified(), undetected, "selective"), steps=50))
