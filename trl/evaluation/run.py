"""Run an evaluation batch by batch, in a fixed order: attack, judge and record."""

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
from trl.threat import Ball, Threat


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
    """bool [n] each, on the CPU: classified correctly clean, and also under `attack`.

    `evaluate` for one attack, without its checks for signs. The attack's seed depends on `name`.
    """
    check_setup(model, x, y, batch_size, threat)
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
    """The result of `attack` for every image, even those misclassified without it: float32 like x, on the CPU.

    For evaluating a detector, which has to tell all attacked images from natural ones. Arguments, checks, seeds and
    errors are those of `evaluate`.
    """
    check_setup(model, x, y, batch_size, threat)
    stored = open_state(state, key, model, x, y, {"perturb": attack}, threat, batch_size, seed)
    everything = torch.ones(len(x), dtype=torch.bool)
    with evaluating(model), Progress("perturb", len(x), "images") as progress:
        Run(model, x, y, threat, batch_size, seed, stored, progress).part("perturb", attack, everything, everything)
    return stored.take()


def check_setup(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, threat: Threat | None = None) -> int:
    """The model's number of classes; TrlError for images, labels, a model or a region that cannot be evaluated."""
    check_images_and_labels(x, y)
    if len(x) == 0:
        raise TrlError("there are no images: give at least one")
    if batch_size < 1:
        raise TrlError(f"batch_size is {batch_size}: give at least 1")
    if threat and threat.region:
        for rows in batches(len(x), batch_size):
            threat.around(as_input(x[rows], device_of(model)))
    return try_out(model, x).shape[1]


def may_use_half(model: nn.Module, precision: Precision) -> bool:
    """Whether attacks search in bf16: if requested, and faster on the model's device. TrlError: unknown precision."""
    if precision not in ("fp32", "bf16"):
        raise TrlError(f"precision is {precision!r}: give fp32 or bf16")
    return precision == "bf16" and has_fast_bf16(device_of(model))


def open_state(state: str | Path | None, key: str | None, model: nn.Module, x: Tensor, *settings: Any) -> State:
    """The state of an evaluation with these `settings`, in the folder `state` or in memory; see `fingerprint`."""
    if state is None:
        return State(None, x.shape)
    return State(Path(state) / fingerprint(model, x, *settings, device_of(model).type, key=key), x.shape)


@dataclass
class Run:
    """One running evaluation: units of work (one batch under one attack) in a fixed order, skipped if already done."""

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
        """bool [n]: classified correctly without attack. The images themselves are stored for now."""
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
        """bool [n]: those of the samples `left` that also survive `attack`.

        Its results are stored for the samples `unfooled` by earlier attacks.
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
        """Judge the stored images again, in batches in the order of the data; a sign if that does not give `worst`.

        For a model with `random` outputs they are not the worst case, which is reported in any case.
        """
        again = torch.zeros_like(worst)
        for rows in batches(len(self.x), self.batch_size):
            x_adv = self.state.adversarials[rows].to(device_of(self.model))
            again[rows] = self._judge(x_adv, self._batch(rows)[1], "the stored images").cpu()
        changed = int((again != worst).sum())
        seen = f"judged again in other batches, {changed} of {len(worst)} stored images got a different verdict"
        if random:
            why = "the model's outputs are random, so images and figures reflect one draw, not the worst case."
        elif changed:
            why = "its outputs are random or depend on the batch, or the images lie within rounding of the boundary."
        else:
            return []
        return [Sign("unsteady", f"{seen}: {why}")]

    @contextmanager
    def _once(self, images: int) -> Iterator[bool]:
        """One unit of work: yields whether it is still to be done, then records it as done."""
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
        with seeded(x.device, derive_seed(self.seed, "decision")):
            return _withstands(self.model, x, y, what, self.criterion)

    def _attack(self, name: str, attack: Attack, x: Tensor, y: Tensor, seed: int, cost: Cost) -> Tensor:
        """The attack's checked result, float32 on the device of x; its random numbers depend on `seed` alone."""

        def search(precision: Precision) -> Tensor:
            half = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
            with seeded(x.device, seed), torch.enable_grad(), half:
                result = attack(self.model, x.clone(), y.clone())  # copies: an attack may modify its input
            to_eval(self.model)  # a third-party attack may leave it in training mode
            ball = self.threat.around(x)
            checked = _checked(name, result, self.threat, ball)
            cost.searched_in(precision)
            return ball.restore(to_eight_bit(checked, x, self.threat)) if self.eight_bit else checked

        if self.half and may_search_in_half(attack) and "fp32" not in cost.precision:
            try:
                return search("bf16")
            except Exception as error:  # whatever a model without support for half precision raises
                say(f"attack {name!r} cannot search in bf16 ({in_one_line(error)}): continuing in fp32")
        return search("fp32")


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, random numbers depend on `seed` alone; the caller's generators are restored afterwards."""
    with kept_generators(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed unused GPUs, permanently
        if device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        yield


def _withstands(model: nn.Module, x: Tensor, y: Tensor, what: str, criterion: Criterion) -> Tensor:
    """bool [n]: the criterion is not met by the model's outputs for x, in eval mode and fp32."""
    with torch.no_grad(), full_precision(x.device):
        outputs = checked_logits(criterion.view(model), x, what)
    low, high, classes = int(y.min()), int(y.max()), outputs.shape[1] - len(criterion.detectors)
    if low < 0 or high >= classes:
        raise TrlError(
            f"labels range from {low} to {high}, but the model has {classes} classes: give labels 0 to {classes - 1}"
        )
    return ~criterion.met(outputs, y)


def _checked(name: str, result: object, threat: Threat, ball: Ball) -> Tensor:
    """The result of an attack on `ball.x` as float32 on the device of x; TrlError if it breaks the rules."""
    x = ball.x
    if not isinstance(result, Tensor) or result.shape != x.shape or not result.is_floating_point():
        given = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise TrlError(f"attack {name!r} returned {given}: it must return floating-point images {tuple(x.shape)}")
    x_adv = result.detach().to(x.device, torch.float32)
    if x_adv.isnan().any():
        raise TrlError(f"attack {name!r} returned NaN: check its step size and the model's gradient")
    low, high = x_adv.aminmax()
    outside = float(torch.maximum(-low, high - 1))
    if outside > TOLERANCE:
        raise TrlError(f"attack {name!r} leaves [0, 1] by {outside:.4g}: clip its result")
    strayed = float((x_adv - ball.restore(x_adv)).abs().max())
    if strayed > TOLERANCE:
        raise TrlError(
            f"attack {name!r} leaves the region by up to {strayed:.4g}: give it the threat of the evaluation"
        )
    x_adv = ball.restore(x_adv).clamp(0, 1)
    excess = float(threat.excess(x_adv, x).max())
    if excess > 0:
        half_level = threat.distance(torch.full_like(x[:1], 0.5 / LEVELS), torch.zeros_like(x[:1])) + TOLERANCE
        fix = "give it the epsilon of the evaluation"
        if excess <= half_level and is_eight_bit(x_adv):
            fix = (
                "its images are 8-bit, and rounding alone moves a value by up to 1/510; round towards the natural "
                "image when storing them, or evaluate at an epsilon that is larger by that much"
            )
        raise TrlError(f"attack {name!r} leaves the {threat.name} ball of {threat.epsilon:.4g} by {excess:.4g}: {fix}")
    return x_adv
