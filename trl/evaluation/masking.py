"""Signs of gradient masking: a model that looks robust only because its gradients mislead attacks.

After Athalye et al. 2018 (arXiv 1802.00420, section 3.1), Carlini et al. 2019 (arXiv 1902.06705), Croce et al. 2022
(arXiv 2202.13711) and Pintor et al. 2022 (arXiv 2106.09947). A sign is a reason to investigate, not a proof; a model
without signs may still mask its gradients.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from trl.attacks.losses import LOSSES, cw_margin
from trl.attacks.pgd import pgd
from trl.common.errors import TrlError
from trl.common.images import as_input, check_images_and_labels
from trl.evaluation.signs import Sign
from trl.nn.inference import device_of, full_precision, kept_generators
from trl.nn.logits import checked_logits
from trl.nn.modes import frozen
from trl.threat import Threat

SUBSAMPLE = 128  # images that a check looks at
DRAWS = 5  # forward passes that must agree, as in AutoAttack's check
AGREEMENT = 1e-4  # how far two logit vectors of one image may differ, relative to their length
SATURATED = 80.0  # margin of logits: from about 87 on, e^-margin, and so the gradient of cross-entropy, is 0 in fp32
NUDGE = 1e-4  # added to every value: well below one 8-bit level, far above fp32 rounding
NOTEWORTHY = 0.01  # smaller differences between attacks, as a fraction of the samples, are ignored


def check_model(model: nn.Module, x: Tensor, y: Tensor) -> list[Sign]:
    """Signs on a subsample of at most 128 images, before any attack: 9 forward and 3 backward passes.

    `x` uint8 or float in [0, 1], `y` integer [n]. Runs in eval mode and fp32; the model and the random generators are
    restored. TrlError for invalid images or logits.
    """
    with _subsample(model, x, y) as (x, y):
        answers = [checked_logits(model, x) for _ in range(DRAWS)]
        draws = torch.stack(answers).float()
        logits, precise = draws[0], answers[0].dtype in (torch.float32, torch.float64)
        with torch.enable_grad():
            point = x.clone().requires_grad_()
            seen = checked_logits(model, point).float()
            blind = {name: _blind(loss(seen, y), point) for name, loss in LOSSES.items()}
        half = checked_logits(model, x[: len(x) // 2]).float()
        # two points on the same side of the image, which may itself lie on the edge of a step
        inwards = torch.where(x < 0.5, NUDGE, -NUDGE).to(x.dtype)
        nudged = [checked_logits(model, x + share * inwards) for share in (0.5, 1.0)]
    random = _random(draws)
    right = seen.argmax(1) == y  # for a random model, in the same draw as the gradients
    signs = [
        random,
        # for a random model these two would only repeat the first sign
        None if random else _dynamic(logits, seen.detach()),
        None if random else _batch(logits[: len(half)], half),
        _probabilities(logits),
        _saturated(seen.detach(), y, right),
        _zero_gradient({name: flags[right] for name, flags in blind.items()}),
        _flat(*nudged) if precise else None,  # half-precision logits are too coarse
    ]
    return [sign for sign in signs if sign]


def check_budget(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int = 20) -> list[Sign]:
    """Signs that PGD does not gain from more steps or a larger epsilon, on the same subsample as `check_model`.

    Costs `steps`·9/4 gradients: runs a quarter of the steps, all steps, and all steps with an unlimited epsilon.
    """
    with _subsample(model, x, y) as (x, y):
        right = checked_logits(model, x).argmax(1) == y
        x, y = x[right], y[right]
        if len(x) == 0:
            return []
        largest = float(threat.distance(torch.ones_like(x[:1]), torch.zeros_like(x[:1])))
        everything = replace(threat, epsilon=largest, region=None)  # a region may hold too little to fool the model

        def left(threat: Threat, steps: int) -> int:
            x_adv = pgd(model, x, y, threat, steps=steps, random_start=False)
            return int((checked_logits(model, x_adv).argmax(1) == y).sum())

        fewer, more = (left(threat, n) for n in (max(1, steps // 4), steps))
        unbounded = left(everything, steps)
    return [sign for sign in (_steps(fewer, more, len(x), steps), _unbounded(unbounded, len(x), everything)) if sign]


def check_results(
    correct: Mapping[str, Tensor],
    *,
    gradient_free: Collection[str] = ("square",),
    one_step: Collection[str] = ("fgsm",),
    stages: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> list[Sign]:
    """Signs in the results of an evaluation: `correct` and `stages` as in `Evaluation`, bool [n] each.

    `gradient_free` names the attacks, or parts of an ensemble, that use no gradient of the model (Square, transfer);
    `one_step` those that take a single step. In a cumulative evaluation these must come last to be compared, since
    later attacks do not see the samples that they fooled.
    """
    clean, stages = correct["clean"], stages or {}
    fooled = {name: clean & ~flags for name, flags in correct.items() if name != "clean" and name not in stages}
    for name, parts in stages.items():
        before = clean
        for part, flags in parts.items():
            label = part if part in gradient_free or part in one_step else f"{name}/{part}"
            fooled[label] = fooled.get(label, torch.zeros_like(clean)) | (before & ~flags)
            before = flags
    iterative = {n: flags for n, flags in fooled.items() if n not in gradient_free and n not in one_step}
    if not iterative or not clean.any():
        return []
    free = {n: flags for n, flags in fooled.items() if n in gradient_free}
    single = {n: flags for n, flags in fooled.items() if n in one_step}
    n = int(clean.sum())
    signs = [_black_box(free, {**iterative, **single}, n), *(_one_step(s, f, iterative, n) for s, f in single.items())]
    return [sign for sign in signs if sign]


# --- the signs; None if there is nothing to report


def _random(draws: Tensor) -> Sign | None:
    """`draws`: logits [draws,n,k] of the same images."""
    moved = torch.stack([_differ(draws[0], draw) for draw in draws[1:]]).any(0)
    if not moved.any():
        return None
    return Sign(
        "random",
        f"the model's outputs are random: {_share(moved)} got different logits in repeated forward passes. "
        "The gradient of a single pass misleads an attack; attack EoT(model, 20), or use autoattack's version rand.",
    )


def _dynamic(logits: Tensor, with_gradients: Tensor) -> Sign | None:
    """Compare logits [n,k] with gradients off and on."""
    moved = _differ(logits, with_gradients)
    if not moved.any():
        return None
    return Sign(
        "dynamic",
        f"the model behaves differently when gradients are enabled: {_share(moved)} got different logits. "
        "Attacks then see a different model; look for no_grad, detach or is_grad_enabled in forward.",
    )


def _batch(whole: Tensor, half: Tensor) -> Sign | None:
    """Compare logits [n,k] of the same images in a batch of 2n and in one of n."""
    moved = _differ(whole, half)
    if not moved.any():
        return None
    return Sign(
        "batch",
        f"the logits of an image depend on the rest of its batch: {_share(moved)} got different logits in a smaller "
        "batch. Accuracy is then not a property of single images; look for batch statistics or test-time adaptation.",
    )


def _probabilities(logits: Tensor) -> Sign | None:
    sums = logits.sum(1)
    if logits.min() < 0 or logits.max() > 1 or (sums - 1).abs().max() > AGREEMENT:
        return None
    return Sign(
        "probabilities",
        "the model's outputs all lie in [0, 1] and sum to 1: they are probabilities. Attacks apply a second softmax, "
        "which flattens the gradient; return logits, without softmax.",
    )


def _saturated(logits: Tensor, y: Tensor, right: Tensor) -> Sign | None:
    margin = -cw_margin(logits, y)[right]
    saturated = margin > SATURATED
    if not saturated.any():
        return None
    return Sign(
        "saturated",
        f"the logits are so large that softmax saturates: for {_share(saturated)} the true class leads by more than "
        f"{SATURATED:.0f} (up to {float(margin.max()):.3g}). The gradient of cross-entropy underflows there; attack "
        "with a loss that does not saturate (dlr, cw), or scale the logits down.",
    )


def _zero_gradient(blind: Mapping[str, Tensor]) -> Sign | None:
    """`blind`: per loss, the correctly classified images without a usable gradient, bool [n]."""
    found = {loss: flags for loss, flags in blind.items() if flags.any()}
    if not found:
        return None
    shares = ", ".join(f"{loss} for {_share(flags)}" for loss, flags in found.items())
    rest = [loss for loss in blind if loss not in found]
    advice = (
        f"attack with the loss {rest[0]} as well"
        if rest
        else "attack with Square or by transfer, and replace non-differentiable parts by smooth ones (BPDA)"
    )
    return Sign(
        "zero gradient",
        f"the gradient of the loss is exactly zero or not finite: {shares}. "
        f"An attack that follows it does not move, which is not robustness; {advice}.",
    )


def _flat(near: Tensor, far: Tensor) -> Sign | None:
    """Compare logits [n,k] at two points that differ by half of `NUDGE` in every value."""
    flat = (near == far).all(1)
    if flat.float().mean() <= 0.5:
        return None
    return Sign(
        "flat",
        f"the model is piecewise constant: {_share(flat)} kept exactly the same logits when every value changed "
        f"by {NUDGE / 2:g}. It probably quantises its input, so its true gradient is zero; attack with Square or by "
        "transfer, or pass gradients through the quantisation (BPDA).",
    )


def _steps(fewer: int, more: int, n: int, steps: int) -> Sign | None:
    """`fewer` of `n` images survive PGD with a quarter of the steps, `more` with all of them."""
    if more - fewer <= max(1.0, 0.03 * n):
        return None
    return Sign(
        "steps",
        f"more steps make PGD weaker: {fewer / n:.1%} of the subsample survive {max(1, steps // 4)} steps, but "
        f"{more / n:.1%} survive {steps}. The gradient misleads PGD after a few steps; use more restarts, another "
        "loss, and Square.",
    )


def _unbounded(left: int, n: int, threat: Threat) -> Sign | None:
    if left <= NOTEWORTHY * n:
        return None
    return Sign(
        "unbounded",
        f"unbounded PGD ({threat.name} {threat.epsilon:.3g}) leaves {left / n:.1%} of the subsample correct, though it "
        "may turn any image into any other. It has no usable gradient: attack with another loss, with Square or by "
        "transfer before you trust the robust accuracy.",
    )


def _black_box(free: Mapping[str, Tensor], gradient: Mapping[str, Tensor], n: int) -> Sign | None:
    """Compare the samples fooled without and with gradients, out of `n` attacked."""
    if not free:
        return None
    by_free, by_gradient = (torch.stack(list(flags.values())).any(0) for flags in (free, gradient))
    only = int((by_free & ~by_gradient).sum())
    if only <= max(1.0, NOTEWORTHY * n):
        return None
    return Sign(
        "black box",
        f"{', '.join(free)} fooled {only} images ({only / n:.1%}) that no gradient attack fooled (those fooled "
        f"{int(by_gradient.sum()) / n:.1%}), though gradient attacks know more: the gradient is misleading, or they "
        "are too weak. Add other losses, targets and restarts, run the black-box attacks for longer, or adapt an "
        "attack to the model.",
    )


def _one_step(name: str, fooled: Tensor, iterative: Mapping[str, Tensor], n: int) -> Sign | None:
    single, best = int(fooled.sum()), max(int(flags.sum()) for flags in iterative.values())
    if single - best <= max(1.0, NOTEWORTHY * n):
        return None
    return Sign(
        "one step",
        f"{name}, a single step, fooled {single / n:.1%}, but the best iterative attack only {best / n:.1%}. The "
        "gradient misleads after the first step, as after catastrophic overfitting; use smaller steps, restarts "
        "and Square.",
    )


# --- helpers


def subsample_rows(x: Tensor) -> Tensor:
    """Rows of at most 128 images spread evenly over x [n,…]: int64, on the device of x."""
    return torch.linspace(0, len(x) - 1, min(SUBSAMPLE, len(x))).long().to(x.device)


@contextmanager
def _subsample(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The subsample of images and labels on the model's device; inside, the model is set up as for an attack."""
    check_images_and_labels(x, y)
    if len(x) < 2:
        raise TrlError("one image is too few to look for signs of gradient masking: give at least two")
    device = device_of(model)
    rows = subsample_rows(x)
    with frozen(model), full_precision(device), kept_generators(device):
        yield as_input(x[rows], device), y[rows.to(y.device)].to(device, torch.int64)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Whether the logits of an image differ by more than rounding: bool [n]."""
    near = (a - b).norm(dim=1) <= AGREEMENT * a.norm(dim=1)
    return ~(near | (a == b).all(1))  # inf - inf is NaN


def _blind(values: Tensor, x: Tensor) -> Tensor:
    """Whether the gradient of the loss `values` [n] at x is exactly zero or not finite: bool [n]."""
    if not values.requires_grad:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True, materialize_grads=True)
    largest = gradient.flatten(1).abs().amax(1)
    return (largest == 0) | ~largest.isfinite()


def _share(flags: Tensor) -> str:
    return f"{float(flags.float().mean()):.0%} of the images"
