"""Robust accuracy: which samples survive which attacks, and which survive all of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from trl.common.errors import TrlError
from trl.common.images import as_input
from trl.common.progress import Progress, batches, say
from trl.evaluation.cost import Cost
from trl.evaluation.intervals import accuracy
from trl.evaluation.masking import check_budget, check_model, check_results
from trl.evaluation.plausibility import check_accuracy, check_setting
from trl.evaluation.run import Run, check_setup, may_use_half, open_state, survivors
from trl.evaluation.signs import Sign
from trl.nn.modes import evaluating
from trl.nn.precision import Precision
from trl.results.attack import WORST, AttackResult, Passes
from trl.results.base import Accuracy
from trl.threat import Threat

RESERVED = ("clean", WORST)


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate`, per sample, on the CPU.

    `correct`: "clean" and every attack, in the order given, → bool [n]. Under an attack a sample counts only if it is
    correct both clean and attacked: a sample misclassified without attack is not robust, and is not attacked.
    `stages`: for an ensemble such as autoattack, the samples left after each of its parts → bool [n].
    `adversarials`: float32 [n,c,h,w], per sample the first result that is misclassified, else the last attack's result
    (the image itself if it is misclassified without attack), so that the model's accuracy on them is the worst case.
    This does not hold for a model with random outputs (signs `random` and `unsteady`): they then reflect one draw, and
    another draw gives another accuracy.
    `distances`: float32 [n], from adversarial to original images, in the threat's norm.
    `costs`: by attack, or `attack/part` for an ensemble. `signs`: of mistakes or of gradient masking; read them before
    you trust the figures.
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
        """Why the `adversarials` are not the worst case, by sign, to store along with them; empty if they are."""
        return {sign.name: sign.message for sign in self.signs if sign.name in ("random", "unsteady")}

    def result(self) -> AttackResult:
        """The figures, accuracies with 95 % intervals: what a pipeline run keeps in attack.json."""
        robust = {name: correct for name, correct in self.correct.items() if name != "clean"} | {WORST: self.worst}
        stages = {name: {part: _accuracy(left) for part, left in parts.items()} for name, parts in self.stages.items()}
        result = AttackResult(
            epsilon=self.epsilon,
            clean=_accuracy(self.correct["clean"]),
            robust={name: _accuracy(correct) for name, correct in robust.items()},
            cost={
                name: Passes(forwards=cost.forwards, backwards=cost.backwards, precision=cost.precision)
                for name, cost in self.costs.items()
            },
            warnings=[f"{sign.name}: {sign.message}" for sign in self.signs],
        )
        if stages:
            result.stages = stages
        return result

    def summary(self) -> dict[str, Any]:
        """`result` ready for JSON; `stages` only if there are ensembles.

        `{"epsilon", "clean", "robust": {attack: …, "worst": …}, "stages": {attack: {part: …}},
        "cost": {attack: {"forwards", "backwards", "precision"}}, "warnings": ["name: message", …]}`.
        """
        return self.result().content()


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
    """Attack `model` (any module from [0, 1] images to logits [n,k]) with every attack; record the result per sample.

    `x`: uint8, or float in [0, 1]; `y`: any integer type. Both may be on another device than the model: batches are
    converted and moved one at a time; x and y are never modified. The model is first tried on batches of one and two
    images, and is put into eval mode by its own eval(). Correctness is decided in fp32, on exactly the images that are
    returned, after checking that they lie in [0, 1] and in the threat's ball,
    and differ from x only inside its region.

    `precision` "bf16" lets attacks that support it (`searches_in_half`) search in bf16, if that is measured to be
    faster on the device (`has_fast_bf16`); an attack that raises continues in fp32. `costs` records which was used.
    Figures depend on it.

    Every attack runs on all samples that are classified correctly without attack, so that each attack has its own
    robust accuracy; with `cumulative`, only on those that survived the earlier attacks, which is cheaper and gives the
    same worst case. The parts of an ensemble such as autoattack are always cumulative.

    `criterion` defines success; a sample is "correct" while it is not met. Give the attacks the same criterion.

    `eight_bit` rounds results to 256 levels within the ball, as storing them as PNG would. The images must be 8-bit.

    `checks` looks for signs of a mistake (`plausibility`) and of gradient masking (`masking`) in the settings, on at
    most 128 images and in the results.

    The random numbers of an attack depend only on `seed`, its name and the batch; the caller's generators are left
    untouched, and a model with random outputs is judged under a seed, too. With a folder `state`, an interrupted
    evaluation that is repeated resumes after its last batch and ends with the same result; delete the folder once you
    have stored that. A state is tied to the model, the attacks with their options, and their code. For models and
    attacks built from this package, PyTorch and torchvision this is automatic. Your own code (a class, a function, a
    hook) cannot be tracked and needs a `key`: any text that you change whenever that code, or what it reads, changes.
    Weights and other readable attributes are tracked in any case.

    TrlError for invalid images, labels or logits, for an attack that breaks the rules (it is named), and for a state
    that needs a key.
    """
    _check_names(attacks)
    classes = check_setup(model, x, y, batch_size, threat)
    check_criterion(criterion)
    half = may_use_half(model, precision)
    stored = open_state(
        state, key, model, x, y, attacks, threat, batch_size, seed, cumulative, criterion, half, eight_bit
    )
    parts = {name: parts_of(name, attack) for name, attack in attacks.items()}
    total = len(x) * (1 + sum(map(len, parts.values())))
    signs = check_setting(model, x, attacks, threat) if checks else []
    with evaluating(model), Progress("evaluate", total, "images") as progress:
        run = Run(model, x, y, threat, batch_size, seed, stored, progress, criterion, half, eight_bit)
        correct = {"clean": run.clean()}
        if checks and isinstance(criterion, Misclassified):
            signs += check_accuracy(correct["clean"], classes)
        for sign in signs:  # right away: they may save hours
            say(f"warning: {sign.name}: {sign.message}")
        checks = checks and len(attacks) > 0 and len(x) > 1  # one image is too few to look for signs
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
    # allocated before the loop: results kept between batches would fragment memory
    distances = torch.empty(len(x), dtype=torch.float32)
    for rows in batches(len(x), batch_size):
        distances[rows] = threat.distance(adversarials[rows], as_input(x[rows], cpu))
    return Evaluation(float(threat.epsilon), correct, stages, adversarials, distances, run.state.costs, signs)


def _accuracy(correct: Tensor) -> Accuracy:
    return Accuracy(**accuracy(correct))


def _all(correct: Mapping[str, Tensor]) -> Tensor:
    """bool [n]: correct in all of them."""
    return torch.stack(list(correct.values())).all(0)


def _is(attack: Attack, function: Callable[..., Tensor]) -> bool:
    """Whether the attack is `function`, perhaps with options bound by `build_attack`."""
    return getattr(attack, "func", attack) is function


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
    """Robust accuracy under `make_attack(epsilon)` within `make_threat(epsilon)` (such as `Linf`), in order of epsilon.

    Epsilon 0 is clean accuracy. A sample fooled at a smaller epsilon stays fooled at a larger one, since the smaller
    ball lies inside the larger: only survivors are attacked again, and the curve never rises.
    Other arguments and errors are those of `evaluate`.
    """
    robust = evaluate(model, x, y, {}, make_threat(0.0), batch_size, seed).worst
    points = []
    for epsilon in sorted({float(epsilon) for epsilon in epsilons}):
        left = robust.nonzero().squeeze(1)
        if epsilon > 0 and len(left):
            chosen = x[left.to(x.device)], y[left.to(y.device)]
            _, robust[left] = survivors(
                *(model, *chosen, make_attack(epsilon), make_threat(epsilon), batch_size, seed),
                name=f"epsilon {epsilon:.4g}",
                precision=precision,
            )
        found = accuracy(robust)
        points.append(CurvePoint(epsilon, found["accuracy"], found["low"], found["high"]))
    return points


def _check_names(attacks: Mapping[str, Attack]) -> None:
    """TrlError unless the names of the attacks and their parts are valid and unique."""
    for name, attack in attacks.items():
        for text in (name, *(attack.parts if isinstance(attack, Ensemble) else ())):
            if not isinstance(text, str) or not text.strip():
                raise TrlError(f"an attack is called {text!r}: its name must be a non-empty string")
        if name in RESERVED:
            raise TrlError(f"an attack is called {name!r}, a reserved name: choose another one")
    labels = [label for name, attack in attacks.items() for label in parts_of(name, attack)]
    for label in labels:
        if labels.count(label) > 1:
            raise TrlError(f"two attacks or parts are called {label!r}: choose unique names")
