"""Robust accuracy: which samples survive which attacks, and which survive all of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trl.errors import TrlError
from trl.evaluation.inference import TOLERANCE, as_input, device_of, full_precision
from trl.evaluation.intervals import accuracy
from trl.modes import evaluating
from trl.progress import Progress, batches
from trl.randomness import derive_seed
from trl.threat import Threat

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
RESERVED = ("clean", "worst")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, per sample, on the CPU.

    `correct`: "clean" and every attack, in the order given, → bool [n]. Under an attack a sample counts only if it is
    correct both clean and attacked: a naturally misclassified sample is not robust, whatever the attack makes of it.
    `adversarials`: float32 [n,c,h,w], per sample the first attack's result that is misclassified, else the last
    attack's (for a naturally misclassified sample the image itself), so that the model's accuracy on them is the
    worst case.
    """

    epsilon: float
    correct: dict[str, Tensor]
    adversarials: Tensor

    @property
    def worst(self) -> Tensor:
        """bool [n]: correct clean and under every attack; the robust accuracy to report."""
        return torch.stack(list(self.correct.values())).all(0)

    def summary(self) -> dict[str, Any]:
        """`{"epsilon", "clean", "robust": {attack: …, "worst": …}}` with 95 % intervals, ready for JSON."""
        robust = {name: correct for name, correct in self.correct.items() if name != "clean"}
        return {
            "epsilon": self.epsilon,
            "clean": accuracy(self.correct["clean"]),
            "robust": {name: accuracy(correct) for name, correct in {**robust, "worst": self.worst}.items()},
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
) -> Evaluation:
    """Attack `model` (any module from [0, 1] images to logits [n,k]) with every attack and keep the books per sample.

    `x`: uint8, or float in [0, 1]; `y`: any integer type. Both may lie on another device than the model: a batch at a
    time is converted and moved. The model is in eval mode meanwhile. Whether a sample is correct is decided in fp32
    on the very images that are returned, after checking that they lie in [0, 1] and in the threat's ball.
    An attack's randomness depends only on `seed`, its name and the batch; the caller's generators are left alone.

    TrlError for images, labels or logits that make no sense, and for an attack that breaks the rules, by its name.
    """
    _check(x, y, attacks, batch_size)
    device = device_of(model)
    correct = {name: torch.zeros(len(x), dtype=torch.bool) for name in ("clean", *attacks)}
    adversarials = torch.empty(x.shape, dtype=torch.float32)
    running: dict[str, str] = {}
    with evaluating(model), Progress("evaluate", len(x) * len(attacks), "adversarials") as progress:
        for index, batch in enumerate(batches(len(x), batch_size)):
            natural, labels = as_input(x[batch], device), y[batch].to(device, torch.int64)
            clean = _is_correct(model, natural, labels, "natural images")
            correct["clean"][batch] = clean.cpu()
            kept, fooled = natural, torch.zeros_like(clean)
            for name, attack in attacks.items():
                adversarial = _run(name, attack, model, natural, labels, threat, derive_seed(seed, name, index))
                right = _is_correct(model, adversarial, labels, f"results of attack {name!r}")
                replaced = ~fooled & (clean | ~right)
                kept = torch.where(replaced.view(-1, *[1] * (x.ndim - 1)), adversarial, kept)
                fooled |= ~right
                correct[name][batch] = (clean & right).cpu()
                running[name] = f"{name} {correct[name][: batch.stop].float().mean():.1%}"
                progress.update(len(labels), robust=", ".join(running.values()))
            adversarials[batch] = kept.cpu()
    return Evaluation(float(threat.epsilon), correct, adversarials)


def epsilon_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    make_attack: Callable[[float], Attack],
    make_threat: Callable[[float], Threat],
    epsilons: Iterable[float],
    batch_size: int = 500,
    seed: int = 0,
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
            robust[left] = evaluate(model, *survivors, attacks, make_threat(epsilon), batch_size, seed).worst
        found = accuracy(robust)
        points.append(CurvePoint(epsilon, found["accuracy"], found["low"], found["high"]))
    return points


def _check(x: Tensor, y: Tensor, attacks: Mapping[str, Attack], batch_size: int) -> None:
    if len(x) == 0 or y.shape != x.shape[:1]:
        raise TrlError(f"images {tuple(x.shape)} with labels {tuple(y.shape)}: give one label per image, at least one")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TrlError(f"labels are {y.dtype}: give class numbers as integers")
    if batch_size < 1:
        raise TrlError(f"batch_size is {batch_size}: give at least 1")
    for name in RESERVED:
        if name in attacks:
            raise TrlError(f"an attack is called {name!r}, which the summary uses itself: choose another name")


def _is_correct(model: nn.Module, x: Tensor, y: Tensor, what: str) -> Tensor:
    """bool [n]: the model's decision on x in eval mode and fp32."""
    with torch.no_grad(), full_precision(x.device):
        logits = model(x)
    if logits.ndim != 2 or len(logits) != len(x):
        raise TrlError(
            f"the model answers {tuple(logits.shape)} to {len(x)} images: it must return logits [n, classes]"
        )
    if logits.isnan().any():
        raise TrlError(f"the model's logits are NaN on {what}: its weights or its normalisation are broken")
    low, high, classes = int(y.min()), int(y.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise TrlError(f"labels reach from {low} to {high}, but the model has {classes} classes: 0 to {classes - 1}")
    return logits.argmax(1) == y


def _run(name: str, attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
    """The attack's result as float32 beside x, checked; its randomness comes from `seed` alone."""
    generators = range(torch.cuda.device_count()) if x.is_cuda else ()
    with torch.random.fork_rng(generators), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed a GPU not in use, for good
        if x.is_cuda:
            torch.cuda.manual_seed_all(seed)
        result = attack(model, x.clone(), y.clone())  # copies: an attack may work in place
    model.eval()  # an attack of others may leave it in training mode
    if not isinstance(result, Tensor) or result.shape != x.shape or not result.is_floating_point():
        given = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise TrlError(f"attack {name!r} returned {given}: it must return floating images {tuple(x.shape)}")
    x_adv = result.detach().to(x.device, torch.float32)
    if x_adv.isnan().any():
        raise TrlError(f"attack {name!r} returned NaN: check its step size and the model's gradient")
    outside = float(torch.maximum(-x_adv, x_adv - 1).max())
    if outside > TOLERANCE:
        raise TrlError(f"attack {name!r} leaves [0, 1] by {outside:.4g}: let it clip its result")
    excess = float(threat.distance(x_adv, x).max()) - threat.epsilon
    if excess > TOLERANCE:
        raise TrlError(
            f"attack {name!r} leaves the {threat.name} ball of {threat.epsilon:.4g} by {excess:.4g}: "
            "give it the epsilon of the evaluation"
        )
    return x_adv
