"""An evaluation under way: units of work in a fixed order, each judged, counted and kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trl.attacks.base import Attack
from trl.attacks.criterion import MISCLASSIFIED, Criterion
from trl.attacks.ensemble import parts_of
from trl.common.errors import TrlError, in_one_line
from trl.common.images import TOLERANCE, as_input, check_images_and_labels
from trl.common.progress import Progress, batches, say
from trl.common.seeds import derive_seed
from trl.evaluation.cost import Cost, counting
from trl.evaluation.eight_bit import LEVELS, check_eight_bit, is_eight_bit, to_eight_bit
from trl.evaluation.signs import Sign
from trl.evaluation.state import State, fingerprint
from trl.nn.inference import device_of, full_precision, kept_generators, try_out
from trl.nn.logits import checked_logits
from trl.nn.modes import evaluating, to_eval
from trl.nn.precision import Precision, has_fast_bf16, may_search_in_half
from trl.threat import Threat


def survivors(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    threat: Threat,
    batch_size: int = 500,
    seed: int = 0,
    *,
    name: str = "attack",
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor]:
    """bool [n] each, on the CPU: classified correctly clean, and under `attack`, too.

    `evaluate` for one attack, without its checks for signs. `name` is the attack's, which its seed depends on.
    """
    check_setup(model, x, y, batch_size)
    half, parts = may_use_half(model, precision), parts_of(name, attack)
    with evaluating(model), Progress("evaluate", (1 + len(parts)) * len(x), "images") as progress:
        run = Run(model, x, y, threat, batch_size, seed, State(None, x.shape), progress, half=half)
        clean = left = run.clean()
        for part, member in parts.items():
            left = run.part(part, member, left, left)
        return clean, left


def attack_all(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    threat: Threat,
    batch_size: int = 500,
    seed: int = 0,
    *,
    state: str | Path | None = None,
    key: str | None = None,
) -> Tensor:
    """What `attack` makes of every image, those that are misclassified without it included: float32 like x, on the CPU.

    For the scores of a detector, which has to tell all attacked images from natural ones. Arguments, checks, seeds and
    errors are those of `evaluate`.
    """
    check_setup(model, x, y, batch_size)
    books = open_state(state, key, model, x, y, {"perturb": attack}, threat, batch_size, seed)
    everything = torch.ones(len(x), dtype=torch.bool)
    with evaluating(model), Progress("perturb", len(x), "images") as progress:
        Run(model, x, y, threat, batch_size, seed, books, progress).part("perturb", attack, everything, everything)
    return books.take()


def check_setup(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> int:
    """The model's number of classes; TrlError for images, labels or a model that cannot be evaluated."""
    check_images_and_labels(x, y)
    if len(x) == 0:
        raise TrlError("there are no images: give at least one")
    if batch_size < 1:
        raise TrlError(f"batch_size is {batch_size}: give at least 1")
    return try_out(model, x).shape[1]


def may_use_half(model: nn.Module, precision: Precision) -> bool:
    """Whether attacks search in bf16: where it is asked for, and faster on the model's device. TrlError: unknown."""
    if precision not in ("fp32", "bf16"):
        raise TrlError(f"precision is {precision!r}: give fp32 or bf16")
    return precision == "bf16" and has_fast_bf16(device_of(model))


def open_state(state: str | Path | None, key: str | None, model: nn.Module, x: Tensor, *settings: Any) -> State:
    """The state in the folder `state` of what runs under these `settings`, or one in memory; see `fingerprint`."""
    if state is None:
        return State(None, x.shape)
    return State(Path(state) / fingerprint(model, x, *settings, device_of(model).type, key=key), x.shape)


@dataclass
class Run:
    """One evaluation under way: units of work (a batch under one attack) in a fixed order, skipped if done before."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    batch_size: int
    seed: int
    state: State
    progress: Progress
    criterion: Criterion = MISCLASSIFIED
    half: bool = False
    eight_bit: bool = False
    unit: int = 0
    figures: dict[str, Any] = field(default_factory=dict)

    def clean(self) -> Tensor:
        """bool [n]: classified correctly as they are. They are their own adversarials, for now."""
        correct = self.state.flags.setdefault("clean", torch.zeros(len(self.x), dtype=torch.bool))
        for rows in batches(len(self.x), self.batch_size):
            with self._once(rows.stop - rows.start) as due:
                if due:
                    natural, labels = self._batch(rows)
                    if self.eight_bit:
                        check_eight_bit(natural)
                    correct[rows] = self._judge(natural, labels, "natural images").cpu()
                    self.state.adversarials[rows] = natural.cpu()
                self.figures = {"clean": f"{correct[: rows.stop].float().mean():.2%}"}
        return correct

    def part(self, name: str, attack: Attack, left: Tensor, unfooled: Tensor) -> Tensor:
        """bool [n]: those of the samples `left` that survive `attack`, too.

        Its results become the adversarials of the samples that are `unfooled` by the attacks before.
        """
        survive = self.state.flags.setdefault(name, left.clone())
        cost = self.state.costs.setdefault(name, Cost())
        samples = left.nonzero().squeeze(1)

        def figures() -> dict[str, Any]:
            return {"attack": name, "robust": f"{survive.float().mean():.2%}", "forwards": cost.forwards}

        def beat() -> None:
            self.progress.update(0, **figures())

        self.progress.update(len(left) - len(samples), **figures())
        for index, batch in enumerate(batches(len(samples), self.batch_size)):
            rows = samples[batch]
            with self._once(len(rows)) as due:
                if due:
                    natural, labels = self._batch(rows)
                    with counting(self.model, cost, beat):
                        x_adv = self._attack(name, attack, natural, labels, derive_seed(self.seed, name, index), cost)
                    survive[rows] = self._judge(x_adv, labels, f"results of attack {name!r}").cpu()
                    kept = unfooled[rows]
                    self.state.adversarials[rows[kept]] = x_adv.cpu()[kept]
                self.figures = figures()
        return survive

    def recheck(self, worst: Tensor, *, random: bool) -> list[Sign]:
        """Do the stored images, judged once more in batches of the data's order, give `worst`, bool [n]?

        Of a model that was seen to answer at `random` they are no worst case, which is said in any case.
        """
        again = torch.zeros_like(worst)
        for rows in batches(len(self.x), self.batch_size):
            x_adv = self.state.adversarials[rows].to(device_of(self.model))
            again[rows] = self._judge(x_adv, self._batch(rows)[1], "the stored images").cpu()
        changed = int((again != worst).sum())
        seen = f"judged again in other batches, {changed} of {len(worst)} stored images got another verdict"
        if random:
            why = "the model answers at random, so that they and the figures are one draw's, and no worst case."
        elif changed:
            why = "the model answers at random, or by the batch, or they lie within rounding of its decision boundary."
        else:
            return []
        return [Sign("unsteady", f"{seen}: {why}")]

    @contextmanager
    def _once(self, images: int) -> Iterator[bool]:
        """A unit of work: is it still to be done? Afterwards it is, durably."""
        due = self.unit >= self.state.done
        yield due
        self.unit += 1
        if due:
            self.state.done = self.unit
            self.state.save()
        self.progress.update(images, **self.figures)

    def _batch(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        on = (lambda t: rows) if isinstance(rows, slice) else (lambda t: rows.to(t.device))
        return as_input(self.x[on(self.x)], device), self.y[on(self.y)].to(device, torch.int64)

    def _judge(self, x: Tensor, y: Tensor, what: str) -> Tensor:
        with _seeded(x.device, derive_seed(self.seed, "decision")):
            return _withstands(self.model, x, y, what, self.criterion)

    def _attack(self, name: str, attack: Attack, x: Tensor, y: Tensor, seed: int, cost: Cost) -> Tensor:
        """The attack's result as float32 beside x, checked; its randomness comes from `seed` alone."""

        def search(precision: Precision) -> Tensor:
            half = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
            with _seeded(x.device, seed), torch.enable_grad(), half:
                result = attack(self.model, x.clone(), y.clone())  # copies: an attack may work in place
            to_eval(self.model)  # an attack of others may leave it in training mode
            checked = _checked(name, result, x, self.threat)
            cost.searched_in(precision)
            return to_eight_bit(checked, x, self.threat) if self.eight_bit else checked

        if self.half and may_search_in_half(attack) and "fp32" not in cost.precision:
            try:
                return search("bf16")
            except Exception as error:  # whatever a model raises that knows no half precision
                say(f"attack {name!r} cannot search in bf16 ({in_one_line(error)}): it goes on in fp32")
        return search("fp32")


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers that depend on `seed` alone; the caller's generators are as before afterwards."""
    with kept_generators(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed a GPU not in use, for good
        if device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        yield


def _withstands(model: nn.Module, x: Tensor, y: Tensor, what: str, criterion: Criterion) -> Tensor:
    """bool [n]: by the model's decision on x in eval mode and fp32, the criterion is not met."""
    with torch.no_grad(), full_precision(x.device):
        outputs = checked_logits(criterion.view(model), x, what)
    low, high, classes = int(y.min()), int(y.max()), outputs.shape[1] - len(criterion.detectors)
    if low < 0 or high >= classes:
        raise TrlError(f"labels reach from {low} to {high}, but the model has {classes} classes: 0 to {classes - 1}")
    return ~criterion.met(outputs, y)


def _checked(name: str, result: object, x: Tensor, threat: Threat) -> Tensor:
    """What an attack returned for images x, as float32 beside them; TrlError if it breaks the rules."""
    if not isinstance(result, Tensor) or result.shape != x.shape or not result.is_floating_point():
        given = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise TrlError(f"attack {name!r} returned {given}: it must return floating images {tuple(x.shape)}")
    x_adv = result.detach().to(x.device, torch.float32)
    if x_adv.isnan().any():
        raise TrlError(f"attack {name!r} returned NaN: check its step size and the model's gradient")
    low, high = x_adv.aminmax()
    outside = float(torch.maximum(-low, high - 1))
    if outside > TOLERANCE:
        raise TrlError(f"attack {name!r} leaves [0, 1] by {outside:.4g}: let it clip its result")
    x_adv = x_adv.clamp(0, 1)
    excess = float(threat.excess(x_adv, x).max())
    if excess > 0:
        half_level = threat.distance(torch.full_like(x[:1], 0.5 / LEVELS), torch.zeros_like(x[:1])) + TOLERANCE
        mend = "give it the epsilon of the evaluation"
        if excess <= half_level and is_eight_bit(x_adv):
            mend = (
                "its images are of 8 bits, whose rounding alone moves a value by up to 1/510; round towards the "
                "natural image when they are stored, or evaluate at an epsilon that is larger by as much"
            )
        raise TrlError(f"attack {name!r} leaves the {threat.name} ball of {threat.epsilon:.4g} by {excess:.4g}: {mend}")
    return x_adv
