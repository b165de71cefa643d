"""Robust accuracy: which samples survive which attacks, and which survive all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trl.attacks.base import Attack
from trl.attacks.criterion import MISCLASSIFIED, Criterion, Misclassified, check_criterion
from trl.attacks.ensemble import Ensemble, parts_of
from trl.attacks.fgsm import fgsm
from trl.attacks.gradient_free import is_gradient_free
from trl.attacks.transfer import Transfer
from trl.common.errors import TrlError, in_one_line
from trl.common.images import TOLERANCE, as_input, check_images_and_labels
from trl.common.progress import Progress, batches, say
from trl.common.seeds import derive_seed
from trl.evaluation.cost import Cost, counting
from trl.evaluation.eight_bit import LEVELS, is_eight_bit, to_eight_bit
from trl.evaluation.intervals import accuracy
from trl.evaluation.masking import Sign, check_budget, check_model, check_results
from trl.evaluation.plausibility import check_accuracy, check_setting
from trl.evaluation.state import State, fingerprint
from trl.nn.inference import device_of, full_precision, kept_generators, try_out
from trl.nn.logits import checked_logits
from trl.nn.modes import evaluating, to_eval
from trl.nn.precision import Precision, has_fast_bf16, may_search_in_half
from trl.threat import Threat

RESERVED = ("clean", "worst")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, per sample, on the CPU.

    `correct`: "clean" and every attack, in the order given, → bool [n]. Under an attack a sample counts only if it is
    correct both clean and attacked: a naturally misclassified sample is not robust, and is not attacked.
    `stages`: of an ensemble such as autoattack, what is left after each of its parts → bool [n].
    `adversarials`: float32 [n,c,h,w], per sample the first attack's result that is misclassified, else the last
    attack's (for a naturally misclassified sample the image itself), so that the model's accuracy on them is the
    worst case. Not so if the model answers at random (the signs `random` and `unsteady` say so): then they are what
    fooled it, or did not, in one draw, and another draw gives another accuracy.
    `distances`: float32 [n], how far they are from the images, in the threat's norm.
    `costs`: by attack, or `attack/part` of an ensemble. `signs`: of a mistake or of gradient masking; look at them
    before you believe the figures.
    """

    epsilon: float
    correct: dict[str, Tensor]
    stages: dict[str, dict[str, Tensor]]
    adversarials: Tensor
    distances: Tensor
    costs: dict[str, Cost]
    signs: list[Sign]

    @property
    def worst(self) -> Tensor:
        """bool [n]: correct clean and under every attack; the robust accuracy to report."""
        return _all(self.correct)

    @property
    def caveats(self) -> dict[str, str]:
        """Why the `adversarials` are no worst case, by sign: for the file that keeps them. Empty without one."""
        return {sign.name: sign.message for sign in self.signs if sign.name in ("random", "unsteady")}

    def summary(self) -> dict[str, Any]:
        """Ready for JSON, accuracies with 95 % intervals; `stages` only where there are ensembles.

        `{"epsilon", "clean", "robust": {attack: …, "worst": …}, "stages": {attack: {part: …}},
        "cost": {attack: {"forwards", "backwards", "precision"}}, "warnings": ["name: message", …]}`.
        """
        robust = {name: correct for name, correct in self.correct.items() if name != "clean"}
        stages = {
            name: {part: accuracy(correct) for part, correct in parts.items()} for name, parts in self.stages.items()
        }
        return {
            "epsilon": self.epsilon,
            "clean": accuracy(self.correct["clean"]),
            "robust": {name: accuracy(correct) for name, correct in {**robust, "worst": self.worst}.items()},
            **({"stages": stages} if stages else {}),
            "cost": {
                name: {"forwards": cost.forwards, "backwards": cost.backwards, "precision": cost.precision}
                for name, cost in self.costs.items()
            },
            "warnings": [f"{sign.name}: {sign.message}" for sign in self.signs],
        }


class CurvePoint(NamedTuple):
    """Robust accuracy at one epsilon, with its 95 % interval."""

    epsilon: float
    accuracy: float
    low: float
    high: float


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    threat: Threat,
    batch_size: int = 500,
    seed: int = 0,
    *,
    criterion: Criterion = MISCLASSIFIED,
    cumulative: bool = False,
    checks: bool = True,
    precision: Precision = "fp32",
    eight_bit: bool = False,
    state: str | Path | None = None,
    key: str | None = None,
) -> Evaluation:
    """Attack `model` (any module from [0, 1] images to logits [n,k]) with every attack and keep the books per sample.

    `x`: uint8, or float in [0, 1]; `y`: any integer type. Both may lie on another device than the model: a batch at a
    time is converted and moved; they are never written to. First the model must answer a batch of one and one of two.
    It is in eval mode meanwhile, by its own eval(). Whether a sample is correct is decided in fp32, on the very images
    that are returned, after checking that they lie in [0, 1] and in the threat's ball.

    `precision` "bf16" lets those attacks search in it that may (`searches_in_half`), if the device is measured to be
    faster so (`has_fast_bf16`); one that raises goes on in fp32. `costs` say what was used. Figures depend on it.

    Every attack runs on all samples that are classified correctly clean, so that each has its own robust accuracy;
    with `cumulative` only on those that survived the attacks before it, which is cheaper and gives the same worst
    case. The parts of an ensemble such as autoattack always do.

    `criterion` is what a success is, and "correct" whatever is none: give the attacks the same one.

    With `eight_bit`, what an attack returns is first rounded to 256 levels, within the ball: as the adversarial images
    would be if they were stored as PNG. The images must be of 8 bits themselves.

    With `checks`, the setting, at most 128 images and the results are looked at for signs of a mistake (`plausibility`)
    and of gradient masking (`masking`).

    An attack's randomness depends only on `seed`, its name and the batch; the caller's generators are left alone, and
    a model that answers at random is judged under a seed, too. With a folder `state`, a killed evaluation that is
    repeated goes on after its last batch and ends with the same result; delete the folder when you have stored that.
    A state belongs to the model, the attacks with their options, and their code. Of models and attacks made of this
    package's, PyTorch's and torchvision's parts all of it is seen; code of yours (a class, a function, a hook) is not,
    and needs a `key`: any text, which you change whenever that code or what it reads changes. Weights, and other
    attributes that can be told, are seen all the same.

    TrlError for images, labels or logits that make no sense, for an attack that breaks the rules, by its name, and
    for a state of what has no key.
    """
    _check_names(attacks)
    classes = _check(model, x, y, batch_size)
    check_criterion(criterion)
    if precision not in ("fp32", "bf16"):
        raise TrlError(f"precision is {precision!r}: give fp32 or bf16")
    half = precision == "bf16" and has_fast_bf16(device_of(model))
    books = _books(state, key, model, x, y, attacks, threat, batch_size, seed, cumulative, criterion, half, eight_bit)
    parts = {name: parts_of(name, attack) for name, attack in attacks.items()}
    total = len(x) * (1 + sum(map(len, parts.values())))
    signs = check_setting(model, x, attacks, threat) if checks else []
    with evaluating(model), Progress("evaluate", total, "images") as progress:
        run = _Run(model, x, y, threat, batch_size, seed, books, progress, criterion, half, eight_bit)
        correct = {"clean": run.clean()}
        if checks and isinstance(criterion, Misclassified):
            signs += check_accuracy(correct["clean"], classes)
        for sign in signs:  # at once: they may save hours
            say(f"warning: {sign.name}: {sign.message}")
        checks = checks and len(attacks) > 0 and len(x) > 1  # a single image is no sample to look for signs in
        if checks:
            signs += [*check_model(model, x, y), *check_budget(model, x, y, threat)]
        stages: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
        for name, members in parts.items():
            unfooled = _all(correct)
            left = unfooled if cumulative else correct["clean"]
            for part, attack in members.items():
                left = run.part(part, attack, left, unfooled)
                stages[name][part.removeprefix(f"{name}/")] = left
            correct[name] = left
        if checks:
            signs += run.recheck(_all(correct), random=any(sign.name == "random" for sign in signs))
    stages = {name: stages[name] for name in parts if [*parts[name]] != [name]}
    if checks:
        free = [name for name, attack in attacks.items() if is_gradient_free(attack) or isinstance(attack, Transfer)]
        single = [name for name, attack in attacks.items() if _is(attack, fgsm)]
        signs += check_results(correct, gradient_free=["square", *free], one_step=["fgsm", *single], stages=stages)
    adversarials = run.state.take()
    cpu = torch.device("cpu")
    distances = torch.empty(
        len(x), dtype=torch.float32
    )  # made before the loop: results that stay between batches would fragment memory
    for rows in batches(len(x), batch_size):
        distances[rows] = threat.distance(adversarials[rows], as_input(x[rows], cpu))
    return Evaluation(float(threat.epsilon), correct, stages, adversarials, distances, run.state.costs, signs)


def perturb(
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
    _check(model, x, y, batch_size)
    books = _books(state, key, model, x, y, {"perturb": attack}, threat, batch_size, seed)
    everything = torch.ones(len(x), dtype=torch.bool)
    with evaluating(model), Progress("perturb", len(x), "images") as progress:
        _Run(model, x, y, threat, batch_size, seed, books, progress).part("perturb", attack, everything, everything)
    return books.take()


def _books(state: str | Path | None, key: str | None, model: nn.Module, x: Tensor, *settings: Any) -> State:
    if state is None:
        return State(None, x.shape)
    return State(Path(state) / fingerprint(model, x, *settings, device_of(model).type, key=key), x.shape)


def _all(correct: Mapping[str, Tensor]) -> Tensor:
    """bool [n]: correct under everything so far."""
    return torch.stack(list(correct.values())).all(0)


def _is(attack: Attack, function: Callable[..., Tensor]) -> bool:
    """Is it `function`, perhaps with options, as `build_attack` gives them?"""
    return getattr(attack, "func", attack) is function


@dataclass
class _Run:
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


def epsilon_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    make_attack: Callable[[float], Attack],
    make_threat: Callable[[float], Threat],
    epsilons: Iterable[float],
    batch_size: int = 500,
    seed: int = 0,
    precision: Precision = "fp32",
) -> list[CurvePoint]:
    """Robust accuracy under `make_attack(epsilon)` within `make_threat(epsilon)` (such as `Linf`), by rising epsilon.

    Epsilon 0 is clean accuracy. A sample fooled at a smaller epsilon stays fooled at a larger one, since the smaller
    ball lies inside the larger: only the survivors are attacked again, and the curve never rises.
    Arguments and errors are otherwise those of `evaluate`.
    """
    robust = evaluate(model, x, y, {}, make_threat(0.0), batch_size, seed).worst
    points = []
    for epsilon in sorted({float(epsilon) for epsilon in epsilons}):
        left = robust.nonzero().squeeze(1)
        if epsilon > 0 and len(left):
            attacks = {f"epsilon {epsilon:.4g}": make_attack(epsilon)}
            survivors = x[left.to(x.device)], y[left.to(y.device)]
            robust[left] = evaluate(
                *(model, *survivors, attacks, make_threat(epsilon), batch_size, seed),
                checks=False,
                precision=precision,
            ).worst
        found = accuracy(robust)
        points.append(CurvePoint(epsilon, found["accuracy"], found["low"], found["high"]))
    return points


def _check(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> int:
    """The model's number of classes; TrlError for images, labels or a model that cannot be evaluated."""
    check_images_and_labels(x, y)
    if len(x) == 0:
        raise TrlError("there are no images: give at least one")
    if batch_size < 1:
        raise TrlError(f"batch_size is {batch_size}: give at least 1")
    return try_out(model, x).shape[1]


def _check_names(attacks: Mapping[str, Attack]) -> None:
    """TrlError unless all results can be told apart by the names of the attacks and their parts."""
    for name, attack in attacks.items():
        for text in (name, *(attack.parts if isinstance(attack, Ensemble) else ())):
            if not isinstance(text, str) or not text.strip():
                raise TrlError(f"an attack is called {text!r}: give it a name, which is a text")
        if name in RESERVED:
            raise TrlError(f"an attack is called {name!r}, which the summary uses itself: choose another name")
    labels = [label for name, attack in attacks.items() for label in parts_of(name, attack)]
    for label in labels:
        if labels.count(label) > 1:
            raise TrlError(f"{label!r} is an attack and the part of another, or a part of two: choose other names")


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
