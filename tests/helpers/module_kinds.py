"""Kinds of module that people bring, and what works with each.

`python -m tests.helpers.module_kinds` writes the table into docs/models.md.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.helpers import ROOT
from trl.attacks import build_attack
from trl.common.errors import TrlError
from trl.data.base import ImageSet
from trl.detection.adaptive import fit_calibrated
from trl.detectors import build_detector
from trl.evaluation import evaluate
from trl.threat import Linf

PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- table: made by tests/helpers/module_kinds.py -->\n", "<!-- end of table -->"
CLASSES, SHAPE = 3, (1, 8, 8)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*layers).eval()


class Around(nn.Module):
    """`plain`, whose answer goes through a function."""

    def __init__(self, function: Callable[[Tensor], object] = lambda z: z) -> None:
        super().__init__()
        self.net, self.function = plain(), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.net(x))


class Extra(Around):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}


class InPlace(Around):
    def forward(self, x: Tensor) -> object:
        return self.net(x.sub_(0.5))


class Dropping(Around):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> object:
        return self.net(self.drop(x))


class Deploying(Around):
    """Works only once its own eval() was called."""

    ready = False

    def train(self, mode: bool = True) -> "Deploying":
        super().train(mode)
        self.ready = not mode
        return self

    def forward(self, x: Tensor) -> object:
        return self.net(x) if self.ready else self.net(x) * torch.nan


def kept_on() -> nn.Module:
    model = Dropping().eval()
    model.drop.train()
    return model


def made_without_gradients() -> nn.Module:
    with torch.inference_mode():
        return plain()


def all_convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def exported(batch: int | None) -> nn.Module:
    shape = None if batch else ({0: torch.export.Dim.AUTO},)
    return torch.export.export(plain(), (torch.rand(batch or 4, *SHAPE),), dynamic_shapes=shape).module()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "`nn.Module`": plain,
    "a wrapper of one": Around,
    "a module whose `train()` and `eval()` do more": lambda: Deploying().train(),
    "a model in training mode": lambda: plain().train(),
    "a model in eval mode with a dropout switched on": kept_on,
    "frozen parameters": lambda: plain().requires_grad_(False),
    "parameters made under `torch.inference_mode`": made_without_gradients,
    "extra state": Extra,
    "`nn.DataParallel`": lambda: nn.DataParallel(plain()),
    "`torch.compile`": lambda: torch.compile(plain(), backend="eager"),
    "`torch.jit.script`": lambda: torch.jit.script(plain()),
    "`torch.jit.trace`": lambda: torch.jit.trace(plain(), torch.rand(4, *SHAPE)),
    "`torch.jit.freeze`": lambda: torch.jit.freeze(torch.jit.script(plain())),
    "`torch.export`, any batch size": lambda: exported(None),
    "`torch.export`, one batch size": lambda: exported(4),
    "dynamically quantised": lambda: torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8),
    "weights in float64": lambda: plain().double(),
    "weights in float16": lambda: plain().half(),
    "weights in bfloat16": lambda: plain().bfloat16(),
    "half precision inside, float32 outside": lambda: Halved(),
    "no linear layer": all_convolutional,
    "modifies its input": InPlace,
    "squeezes its output": lambda: Around(lambda z: z.squeeze(0)),
    "returns a tuple": lambda: Around(lambda z: (z, z)),
    "returns one logit": lambda: Around(lambda z: z[:, :1]),
}


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.bfloat16()).float()


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    return x, plain()(x / 255).argmax(1)


def attacked(make: Callable[[], nn.Module], name: str, **options: object) -> str:
    """`yes`, or the message; any other exception is a fault."""
    threat, (x, y) = Linf(0.1), data()
    try:
        found = evaluate(make(), x, y, {name: build_attack(name, threat, **options)}, threat, batch_size=59)
    except TrlError as error:
        return f"no: {error}"
    signs = [sign.name for sign in found.signs if sign.name in ("modes", "zero gradient")]
    return "yes" + (f", with the sign `{signs[0]}`" if signs else "")


def detected(make: Callable[[], nn.Module]) -> str:
    x, y = data(120)
    train, validation = ImageSet(x[:80], y[:80]), ImageSet(x[80:], y[80:])
    try:
        fit_calibrated(make(), build_detector("gaussian"), train, validation, 0.1)
    except TrlError as error:
        return f"no: {error}"
    return "yes"


def row(kind: str) -> str:
    """Of the table. A message that is the same in all columns stands in the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = KINDS[kind]
        cells = [attacked(make, "pgd", steps=3), attacked(make, "square", queries=20), detected(make)]
    if cells[0].startswith("no") and cells[0] == cells[1]:
        cells = [cells[0].replace("|", "\\|"), "no", "no" if cells[2].startswith("no") else cells[2]]
    return f"| {kind} | {' | '.join(cells)} |"


def table() -> str:
    """All rows, as the page has them."""
    head = "| kind of module | gradient attacks | Square | detectors of embeddings |\n|---|---|---|---|\n"
    return head + "".join(f"{row(kind)}\n" for kind in KINDS)


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1])
