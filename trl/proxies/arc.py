"""ARC: how far a proxy is from the real images, as seen by a discriminator that has to be robust.

After Sehwag et al. (ICLR 2022, arXiv 2104.09425): a discriminator is trained adversarially to tell proxies from real
images. Its robust accuracy is 1/2 at an epsilon at which the attacker can move either distribution onto the other, so
the area above 1/2 is small where they are close. With D the Wasserstein distance in the threat's norm, 4·ARC ≤ D.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trl.attacks import Attack, build_attack, build_attack_at
from trl.common.errors import TrlError
from trl.common.progress import Progress, batches
from trl.common.seeds import derive_seed
from trl.data import ImageSet, ShuffledStream, TrainingData
from trl.evaluation.run import survivors
from trl.nn.modes import evaluating
from trl.threat import Threat
from trl.training.optimizer import build_optimizer
from trl.training.schedule import rate_factor, warmed_up

if TYPE_CHECKING:
    from trl.config import Train

REAL, PROXY = 0, 1
LEARN, SCORE = 2000, 1000  # at most as many images of each kind
EPOCHS = 40  # at most: a discriminator has less to learn than a classifier
STEPS = 50  # of APGD


@dataclass(frozen=True, eq=False)
class Discrimination:
    """Robust accuracy of the discriminators, the mean over both kinds, by epsilon: the robust discrimination curve.

    `scores` [n] of all proxies: their mean probability of being one, over the discriminators; low = hard to tell.
    """

    epsilons: tuple[float, ...]
    accuracy: tuple[float, ...]
    scores: Tensor

    @property
    def area(self) -> float:
        """ARC: the area of max(accuracy - 1/2, 0) over epsilon, by the trapezoidal rule."""
        above = np.maximum(np.array(self.accuracy) - 0.5, 0)
        return float(np.trapezoid(above, self.epsilons))

    def least_detectable(self, share: float) -> Tensor:
        """The indices, int64 [m] in ascending order, of the `share` of the proxies with the lowest scores."""
        count = max(1, round(share * len(self.scores)))
        return self.scores.argsort(stable=True)[:count].sort().values


def default_epsilons(threat: Threat) -> tuple[float, ...]:
    """Eight values from 0 to twice the threat's epsilon."""
    return tuple(float(epsilon) for epsilon in np.linspace(0, 2 * threat.epsilon, 8))


def discriminate(
    proxies: ImageSet,
    train: ImageSet,
    held_out: ImageSet,
    build: Callable[[], nn.Module],
    threat: Threat,
    config: "Train",
    *,
    epsilons: Sequence[float] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Discrimination:
    """Train a discriminator per epsilon (default: `default_epsilons`), and score it on images that it has not seen.

    It learns from real images of `train` and as many proxies, as `config` says, for 40 epochs at most. It is scored
    under APGD on real images `held_out` from it, and from the proxy, and on other proxies. `build` makes a network with
    two logits.
    TrlError if there are fewer than two proxies, or no image of either kind.
    """
    config = config.model_copy(update={"epochs": min(config.epochs, EPOCHS)})
    chosen = tuple(epsilons or default_epsilons(threat))
    learnt = min(LEARN, len(train), len(proxies) // 2)
    if not learnt or not len(held_out):
        sizes = f"{len(train)} training images, {len(held_out)} held out, {len(proxies)} proxies"
        raise TrlError(f"ARC needs images of each kind, and two proxies: {sizes}")
    order = np.random.default_rng(derive_seed(seed, "discriminator", "proxies")).permutation(len(proxies))
    some = np.random.default_rng(derive_seed(seed, "discriminator", "real")).permutation(len(train))[:learnt]
    data = TrainingData(_both(_rows(train, some), _rows(proxies, order[:learnt])), device)
    test = _both(_rows(held_out, np.arange(len(held_out))[:SCORE]), _rows(proxies, order[learnt : learnt + SCORE]))
    scores, accuracy = torch.zeros(len(proxies)), []
    with Progress("ARC", len(chosen), "epsilons") as progress:
        for epsilon in chosen:
            torch.manual_seed(derive_seed(seed, "discriminator", "weights"))
            model = build().to(device)
            attack_at = partial(build_attack_at, name=config.attack.name, threat=threat, **config.attack.options)
            _fit(model, data, attack_at, epsilon, config, seed)
            within = replace(threat, epsilon=epsilon)
            attack = build_attack("apgd", within, steps=STEPS)
            clean, robust = survivors(model, test.images, test.labels, attack, within, seed=seed, name="ARC")
            right = robust if epsilon else clean
            accuracy.append(float(np.mean([right[test.labels == k].float().mean() for k in (REAL, PROXY)])))
            scores += _probability(model, proxies, device) / len(chosen)
            progress.update(accuracy=f"{accuracy[-1]:.1%}")
    return Discrimination(chosen, tuple(accuracy), scores)


def _fit(
    model: nn.Module,
    data: TrainingData,
    attack_at: Callable[[float], Attack],
    epsilon: float,
    config: "Train",
    seed: int,
) -> None:
    """Adversarial training at `epsilon`, in place."""
    size = min(config.batch_size, len(data.labels))
    stream = ShuffledStream(len(data.labels), size, derive_seed(seed, "discriminator", "batches"))
    optimizer = build_optimizer(model, config.optimizer)
    model.train()
    for step in range(config.epochs * stream.per_epoch):
        epoch = step / stream.per_epoch
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * rate_factor(config.schedule, epoch, config.epochs)
        torch.manual_seed(derive_seed(seed, "discriminator", step))
        x, y = data.take(stream.indices(step))
        if epsilon:
            x = attack_at(epsilon * warmed_up(epoch, config.epsilon_warmup_epochs))(model, x, y)
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise TrlError(f"the discriminator at epsilon {epsilon:g} diverged; lower train.optimizer.lr")


@torch.no_grad()
def _probability(model: nn.Module, proxies: ImageSet, device: str) -> Tensor:
    """Of being a proxy, [n] on the CPU."""
    with evaluating(model):
        parts = [
            model(proxies.images[part].to(device).float() / 255).softmax(1)[:, PROXY].cpu()
            for part in batches(len(proxies), SCORE)
        ]
    return torch.cat(parts)


def _rows(images: ImageSet, rows: np.ndarray) -> Tensor:
    return images.images[torch.from_numpy(rows)]


def _both(real: Tensor, proxy: Tensor) -> ImageSet:
    labels = torch.cat([torch.full((len(real),), REAL), torch.full((len(proxy),), PROXY)])
    return ImageSet(torch.cat([real, proxy]), labels)
