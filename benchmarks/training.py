"""Compare training with torchattacks, foolbox and ART: same network, images and machine, in one run.

    python -m benchmarks.training [--quick] [--only speed|accuracy] [--networks NAME …] [--out FILE.json]

1. Speed of an optimiser step on noise images, with the constants of params.yaml. Ours is a step of the training loop,
   with augmentation; the others are plain fp32 loops on float images. Contestants take turns, and each ratio is the
   median over turns, so that other load on the machine affects all of them equally. FLOP/s count what a method needs:
   the passes of images through the network in one of our steps (1 for a forward, 1 for a backward to the input only, 2
   for a full backward) times the FLOPs of a forward. The peak is measured on a product of two square matrices.
2. Accuracy: the same adversarial training of a small network on scikit-learn's digits by our loop and by a plain loop
   with torchattacks, over several seeds, evaluated under the same attack.

Libraries that are not installed are skipped; `pip install -e .[benchmarks]` installs all of them.
"""

import argparse
import copy
import io
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe, headline
from benchmarks.publish import publish
from benchmarks.turns import draw, say, take_turns, timed, times
from trl.attacks import build_attack, build_attack_at
from trl.common.errors import TrlError
from trl.common.seeds import derive_seed
from trl.config import Optimizer, Recipe, load_params
from trl.data import ImageSet, ShuffledStream, Splits, TrainingData, load_dataset, split
from trl.evaluation import evaluate
from trl.models import build_model
from trl.nn.device import choose_device
from trl.nn.precision import has_fast_bf16
from trl.objectives import build_objective
from trl.objectives.base import Batch, Setting
from trl.threat import build_threat
from trl.training import train
from trl.training.loop import Run
from trl.training.schedule import rate_factor

PACKAGES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # the recipe's method, and changes to its options
    "um": ("um", {}),
    "at": ("at", {}),
    "alp": ("alp", {}),
    "tla": ("tla", {}),
    "tla queue": ("tla", {"negative": "queue"}),
}
PASSES = {"forward": 1, "input gradient": 1, "full backward": 2}  # cost of each, in forward passes
SUFFIXES = {"fp32": "", "bf16": " bf16"}  # appended to contestants' names
SMALL, RECIPE, ATTACK = "strided_cnn", "digits", "pgd"  # the setting for comparing accuracy

Shape = tuple[int, int, int]
Step = Callable[[], object]  # one optimiser step
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A network to train with the constants of a recipe; the pool shrinks with the batch."""

    name: str
    recipe: str
    shape: Shape
    batch: int
    turns: int

    def pool(self, recipe: Recipe) -> int:
        full: int = recipe.methods["tla"].options["pool"]
        return max(2, full * self.batch // recipe.train.batch_size)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    networks: tuple[Network, ...] = (
        Network("mnist_cnn", "mnist", (1, 28, 28), batch=50, turns=20),
        Network("resnet18", "cifar10", (3, 32, 32), batch=50, turns=20),
        Network("wrn_34_10", "cifar10", (3, 32, 32), batch=50, turns=10),
    )
    product: int = 8192  # rows of the matrices for measuring the peak
    epochs: int = 60
    seeds: int = 3


ON_CPU = replace(
    Sizes(),
    networks=(
        Network("mnist_cnn", "mnist", (1, 28, 28), batch=50, turns=5),
        Network("resnet18", "cifar10", (3, 32, 32), batch=50, turns=3),
        Network("wrn_34_10", "cifar10", (3, 32, 32), batch=8, turns=2),
    ),
    product=2048,
)
QUICK = Sizes(
    networks=(
        Network("mnist_cnn", "mnist", (1, 28, 28), batch=4, turns=2),
        Network("resnet18", "cifar10", (3, 32, 32), batch=4, turns=2),
    ),
    product=1024,
    epochs=10,
    seeds=2,
)


@dataclass(frozen=True)
class Job:
    """The task of every contestant, starting from a copy of `model`."""

    network: Network
    recipe: Recipe
    model: nn.Module
    images: ImageSet
    device: str
    seed: int

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Float images and labels, as a plain loop uses them."""
        n = self.network.batch
        x, y = self.images.images[:n].to(self.device), self.images.labels[:n].to(self.device)
        return x.float() / 255, y


def ours(job: Job, method: str, precision: str, passes: Counter[str]) -> Step:
    """A step of our training loop; the first call counts `passes`. TrlError: this version has no such option."""
    recipe, config, batch = job.recipe, job.recipe.train, job.network.batch
    name, changed = METHODS[method]
    options = {**recipe.methods[name].options, **changed}
    if "pool" in options:
        options["pool"] = job.network.pool(recipe)
    model = copy.deepcopy(job.model).to(memory_format=torch.channels_last).train()
    augment = config.augment
    data = TrainingData(job.images, job.device, augment.crop, augment.flip, augment.saturation)
    threat = build_threat(**recipe.threat.model_dump())
    setting = Setting(data, threat, config.label_smoothing, job.seed, job.model.head.in_features)
    objective = build_objective(recipe.methods[name].name, setting, **options)
    attack = build_attack_at(threat.epsilon, config.attack.name, objective.threat, **config.attack.options)
    stream = ShuffledStream(len(job.images), batch, derive_seed(job.seed, "batches"))
    changes = {"batch_size": batch, "precision": precision}
    run = Run(model, objective, config.model_copy(update=changes), torch.device(job.device), setting.processes)

    def step() -> None:
        torch.manual_seed(derive_seed(job.seed, "step", run.step))
        with counting(model, passes) if run.step == 0 else nullcontext():
            indices = stream.indices(run.step)
            run.update(Batch(*data.take(indices), indices, run.step, attack))

    return step


@contextmanager
def counting(model: Any, passes: Counter[str]) -> Iterator[None]:
    """Inside, count in `passes` the images that pass through the network, by kind of pass."""

    def count(body: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        passes["forward"] += len(x)
        if torch.is_grad_enabled():
            trained = next(body.parameters()).requires_grad
            passes["full backward" if trained else "input gradient"] += len(x)

    handle = model.body.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


def plain_step(
    model: nn.Module, attack: Attack, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, smoothing: float
) -> None:
    """One step of adversarial training as it is usually written."""
    model.eval()
    x_adv = attack(x, y)
    model.train()
    loss = cross_entropy(model(x_adv), y, label_smoothing=smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    return torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay)


def torchattacks_pgd(model: nn.Module, recipe: Recipe) -> Attack:
    import torchattacks

    options = recipe.train.attack.options
    attack: Attack = torchattacks.PGD(
        model, eps=recipe.threat.epsilon, alpha=options["step_size"], steps=options["steps"]
    )
    return attack


def foolbox_pgd(model: nn.Module, recipe: Recipe) -> Attack:
    import foolbox

    options = recipe.train.attack.options
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=options["step_size"], steps=options["steps"])
    return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=recipe.threat.epsilon)


def plainly(pgd: Callable[[nn.Module, Recipe], Attack], job: Job) -> Step:
    config, model = job.recipe.train, copy.deepcopy(job.model)
    optimizer = plain_optimizer(model, config.optimizer)
    return partial(plain_step, model, pgd(model, job.recipe), optimizer, *job.batch, config.label_smoothing)


def with_art(job: Job) -> Step:
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    config, model = job.recipe.train, copy.deepcopy(job.model)
    options = config.attack.options
    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        input_shape=job.network.shape,
        nb_classes=10,
        optimizer=plain_optimizer(model, config.optimizer),
        clip_values=(0, 1),
        device_type="gpu" if job.device.startswith("cuda") else "cpu",
    )
    trainer = AdversarialTrainerMadryPGD(
        classifier, eps=job.recipe.threat.epsilon, eps_step=options["step_size"], max_iter=options["steps"]
    )
    x, y = (values.cpu().numpy() for values in job.batch)  # its interface is NumPy arrays

    def step() -> None:
        with redirect_stderr(io.StringIO()):  # hides two progress bars per batch
            trainer.fit(x, y, batch_size=len(x), nb_epochs=1)

    return step


PEERS: dict[str, Callable[[Job], Step]] = {
    "torchattacks": partial(plainly, torchattacks_pgd),
    "foolbox": partial(plainly, foolbox_pgd),
    "ART": with_art,
}


@dataclass(frozen=True)
class Contestant:
    method: str
    precision: str
    prepare: Callable[[], Step]
    passes: Counter[str] = field(default_factory=Counter)  # for ours, as counted in its first step


def contestants_for(job: Job, precisions: Iterable[str]) -> dict[str, Contestant]:
    found = {}
    for precision in precisions:
        for method in METHODS:
            passes: Counter[str] = Counter()
            prepare = partial(ours, job, method, precision, passes)
            found[method + SUFFIXES[precision]] = Contestant(method, precision, prepare, passes)
    return found | {peer: Contestant("at", "fp32", partial(build, job)) for peer, build in PEERS.items()}


def training_speed(network: Network, recipe: Recipe, peaks: dict[str, float], device: str, seed: int) -> dict[str, Any]:
    """Figures by contestant (None: skipped), our AT relative to other libraries, and methods relative to AT."""
    torch.manual_seed(seed)
    normalisation = {option: recipe.model.options[option] for option in ("mean", "std")}  # other options may not apply
    model = build_model(network.name, 10, network.shape, **normalisation).eval().to(device)
    length = 2 * max(network.batch, network.pool(recipe))
    noise = ImageSet(torch.randint(256, (length, *network.shape), dtype=torch.uint8), torch.randint(10, (length,)))
    job = Job(network, recipe, model, noise, device, seed)
    contestants = contestants_for(job, peaks)
    steps: dict[str, Step] = {}
    for name, contestant in contestants.items():
        try:
            steps[name] = contestant.prepare()
        except ImportError:
            say(f"{name}: not installed")
        except TrlError as error:
            say(f"{name}: {error}")
    seconds = take_turns(steps, network.turns, partial(timed, device=device), network.name)

    flops = forward_flops(model, network.shape, device)
    passes = {name: contestants[name].passes for name in steps if name not in PEERS}
    needed = {name: forwards(counted) / network.batch for name, counted in passes.items()}
    figures: dict[str, dict[str, Any] | None] = dict.fromkeys(contestants)
    for name in steps:
        contestant, took = contestants[name], median(seconds[name])
        rate = needed[contestant.method] * network.batch * flops / took
        figures[name] = {
            "precision": contestant.precision,
            "images per second": network.batch / took,
            "ms per step": 1000 * took,
            "flops per second": rate,
            "share of peak": rate / peaks[contestant.precision],
        }
    ratios: dict[str, float] = {}
    costs: dict[str, dict[str, float]] = {}
    for at in (name for name in passes if contestants[name].method == "at"):
        ratios |= {f"{at} / {peer}": times(seconds, at, peer) for peer in PEERS if peer in steps}
        costs |= {
            f"{name} / {at}": {"time": times(seconds, at, name), "passes": needed[name] / needed[at]}
            for name in passes
            if name != at and contestants[name].precision == contestants[at].precision
        }
    return {
        "network": asdict(network),
        "pool": network.pool(recipe),
        "epsilon": recipe.threat.epsilon,
        "attack": recipe.train.attack.options,
        "flops of a forward": flops,
        "passes": {  # per image of the batch
            name: {kind: counted[kind] / network.batch for kind in PASSES} | {"in forwards": needed[name]}
            for name, counted in passes.items()
        },
        "contestants": figures,
        "ratios": ratios,
        "costs": costs,
    }


def forwards(passes: Counter[str]) -> int:
    """Their cost in forward passes of one image."""
    return sum(PASSES[kind] * images for kind, images in passes.items())


def forward_flops(model: nn.Module, shape: Shape, device: str) -> int:
    """FLOPs of one image in convolutions and matrix products, which are nearly all."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, *shape, device=device))
    flops: int = counter.get_total_flops()
    return flops


def peak(dtype: torch.dtype, size: int, device: str) -> float:
    """Peak FLOP/s: the fastest of several products of two square matrices."""
    a, b = torch.rand(2, size, size, device=device, dtype=dtype)
    before = torch.get_float32_matmul_precision()
    if device.startswith("cuda"):  # TF32, which PyTorch uses for fp32 convolutions there
        torch.set_float32_matmul_precision("high")
    try:
        return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(10))
    finally:
        torch.set_float32_matmul_precision(before)


def compare_accuracy(sizes: Sizes, recipe: Recipe, device: str, seed: int) -> dict[str, Any]:
    """Clean and robust accuracy and training seconds per seed, by trainer (None: not installed)."""
    data = recipe.data
    splits = split(load_dataset(data.name, **data.options), data.validation, data.split_seed, data.train)
    threat, spec = build_threat(**recipe.threat.model_dump()), recipe.attack.attacks[ATTACK]
    attacks = {ATTACK: build_attack(spec.name, threat, **spec.options)}
    trainers: dict[str, Any] = {"trl": train_ours, "torchattacks": train_plainly}
    found: dict[str, Any] = {name: {"clean": [], "robust": [], "seconds": []} for name in trainers}
    seeds = [*range(seed, seed + sizes.seeds)]
    for now in seeds:
        torch.manual_seed(now)
        initial = build_model(SMALL, len(splits.classes), splits.train.shape).to(device)
        for name, trainer in trainers.items():
            if found[name] is None:
                continue
            say(f"{name}: {sizes.epochs} epochs of {SMALL}, seed {now}")
            model = copy.deepcopy(initial)
            try:
                seconds = timed(partial(trainer, model, recipe, splits, sizes.epochs, device, now), device)
            except ImportError:
                say(f"{name}: not installed")
                found[name] = None
                continue
            test = splits.test
            with redirect_stdout(sys.stderr):
                result = evaluate(model, test.images, test.labels, attacks, threat, seed=seed, checks=False)
            for figure, correct in (("clean", result.correct["clean"]), ("robust", result.worst)):
                found[name][figure].append(float(correct.float().mean()))
            found[name]["seconds"].append(seconds)
    mine, theirs = found["trl"], found["torchattacks"]
    differences, ratios = {}, {}
    if theirs:
        differences = {
            figure: [a - b for a, b in zip(mine[figure], theirs[figure], strict=True)] for figure in ("clean", "robust")
        }
        took = {name: found[name]["seconds"] for name in trainers}
        ratios = {"trl / torchattacks": times(took, "trl", "torchattacks")}
    return {
        "network": SMALL,
        "data": recipe.data.name,
        "epochs": sizes.epochs,
        "seeds": seeds,
        "epsilon": recipe.threat.epsilon,
        "attack": {"name": spec.name, **spec.options},
        "trainers": found,
        "differences": differences,
        "ratios": ratios,
    }


def train_ours(model: nn.Module, recipe: Recipe, splits: Splits, epochs: int, device: str, seed: int) -> None:
    model.to(memory_format=torch.channels_last)
    config = recipe.train
    validation = config.validation.model_copy(update={"every": epochs})  # a plain loop does not select an epoch
    threat = build_threat(**recipe.threat.model_dump())
    setting = Setting(TrainingData(splits.train, device), threat, config.label_smoothing, seed)
    with redirect_stdout(sys.stderr):
        train(
            model,
            build_objective("at", setting),
            setting,
            partial(build_attack_at, name=config.attack.name, threat=threat, **config.attack.options),
            splits.validation,
            build_attack(validation.attack.name, threat, **validation.attack.options),
            config.model_copy(update={"epochs": epochs, "validation": validation}),
        )


def train_plainly(model: nn.Module, recipe: Recipe, splits: Splits, epochs: int, device: str, seed: int) -> None:
    torch.manual_seed(seed)
    config = recipe.train
    attack, optimizer = torchattacks_pgd(model, recipe), plain_optimizer(model, config.optimizer)
    x, y = splits.train.images.to(device).float() / 255, splits.train.labels.to(device)
    batches = len(x) // config.batch_size
    schedule = LambdaLR(optimizer, lambda step: rate_factor(config.schedule, step / batches, epochs))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(config.batch_size)[:batches]:
            plain_step(model, attack, optimizer, x[rows], y[rows], config.label_smoothing)
            schedule.step()


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    lines = [headline(found)]
    if found["speed"]:
        peaks = [f"{name} {value / 1e9:.0f}" for name, value in found["peak"].items()]
        lines += ["", f"One optimiser step (peak: {', '.join(peaks)} GFLOP/s)", ""]
        lines += ["| network | contestant | images/s | ms | GFLOP/s | share of peak |", "|---" * 6 + "|"]
    for row in found["speed"]:
        for name, figures in row["contestants"].items():
            cells = ["not installed" if name in PEERS else "no such option", "", "", ""]
            if figures:
                cells = [f"{figures['images per second']:.1f}", f"{figures['ms per step']:.1f}"]
                cells += [f"{figures['flops per second'] / 1e9:.1f}", f"{figures['share of peak']:.0%}"]
            lines.append(f"| {titled(row)} | {name} | " + " | ".join(cells) + " |")
    if found["speed"]:
        lines += ["", "Speed of a step of our AT relative to", ""]
        lines += ["| | " + " | ".join(PEERS) + " |", "|---" * (len(PEERS) + 1) + "|"]
    for row, suffix in rows_of_at(found):
        ratios = [row["ratios"].get(f"at{suffix} / {peer}") for peer in PEERS]
        cells = [f"{ratio:.2f}×" if ratio else "not installed" for ratio in ratios]
        lines.append(f"| {titled(row)}, at{suffix} | " + " | ".join(cells) + " |")
    others = [method for method in METHODS if method != "at"]
    if found["speed"]:
        lines += ["", "Time of a step relative to AT; in brackets, relative number of passes", ""]
        lines += ["| | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
    for row, suffix in rows_of_at(found):
        costs = [row["costs"].get(f"{method}{suffix} / at{suffix}") for method in others]
        cells = [f"{cost['time']:.2f}× ({cost['passes']:.2f}×)" if cost else "no such option" for cost in costs]
        lines.append(f"| {titled(row)}, at{suffix} | " + " | ".join(cells) + " |")
    if accuracy := found["accuracy"]:
        title = f"{accuracy['network']}, {accuracy['epochs']} epochs of AT on {accuracy['data']}"
        lines += ["", f"{title}, ℓ∞ {accuracy['epsilon']}, {len(accuracy['seeds'])} seeds", ""]
        lines += ["| | clean | robust | seconds of training |", "|---" * 4 + "|"]
        for name, values in accuracy["trainers"].items():
            cells = ["not installed", "", ""]
            if values:
                cells = [*(spread(values[figure], "%") for figure in ("clean", "robust")), spread(values["seconds"])]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for pair, ratio in accuracy["ratios"].items():
            cells = [*(spread(values, "%") for values in accuracy["differences"].values()), f"{ratio:.2f}× the speed"]
            lines.append(f"| {pair} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows_of_at(found: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Every network with the suffix of every precision that AT was measured in."""
    return [(row, SUFFIXES[precision]) for row in found["speed"] for precision in found["peak"]]


def titled(row: dict[str, Any]) -> str:
    return f"{row['network']['name']}, batch {row['network']['batch']}"


def spread(values: list[float], kind: str = "f") -> str:
    return f"{mean(values):.1{kind}} ± {stdev(values):.1{kind}}"


def plot(found: dict[str, Any], path: Path) -> None:
    """All ratios as bars, with a line at 1."""
    named = {row["network"]["name"]: row for row in found["speed"]}
    faster = {f"{name}: {key}": value for name, row in named.items() for key, value in row["ratios"].items()}
    if found["accuracy"]:
        faster |= {f"{SMALL}, whole training: {key}": value for key, value in found["accuracy"]["ratios"].items()}
    slower = {f"{name}: {key}": cost["time"] for name, row in named.items() for key, cost in row["costs"].items()}
    panels = {"speed of AT relative to the other library": faster, "time of a step relative to AT": slower}
    panels = {label: ratios for label, ratios in panels.items() if ratios}
    if panels:
        draw(panels, found["machine"]["gpu"] or found["machine"]["cpu"], path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take a minute or two instead of an hour; less exact")
    parser.add_argument("--only", choices=("speed", "accuracy"), help="run only one of the two measurements")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="measure speed only on these networks")
    parser.add_argument("--device", help="cpu, cuda, … (default: TRL_DEVICE, or the GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write JSON there, and a plot of the ratios next to it")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    sizes = QUICK if options.quick else Sizes() if device.startswith("cuda") else ON_CPU
    known = [network.name for network in sizes.networks]
    if unknown := set(options.networks or ()).difference(known):
        parser.error(f"--networks: unknown {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    networks = [network for network in sizes.networks if network.name in (options.networks or known)]
    logging.getLogger("art").setLevel(logging.WARNING)
    recipes = load_params().recipes
    found: dict[str, Any] = {**describe(device, PACKAGES), "seed": options.seed, "speed": [], "accuracy": None}
    if options.only != "accuracy":
        precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_fast_bf16(device) else {})
        peaks = {name: peak(dtype, sizes.product, device) for name, dtype in precisions.items()}
        found |= {"peak": peaks, "rows of the product": sizes.product}
        found["speed"] = [training_speed(n, recipes[n.recipe], peaks, device, options.seed) for n in networks]
    if options.only != "speed":
        found["accuracy"] = compare_accuracy(sizes, recipes[RECIPE], device, options.seed)
    publish(found, report, plot, options.out)


if __name__ == "__main__":
    main()
