"""TLA, triplet-loss adversarial training (Mao et al., NeurIPS 2019, arXiv 1909.00900), and its variants."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trl.data import ShuffledStream
from trl.errors import TrlError
from trl.metric import hardest_negative, norm_penalty, pairwise_cosine, random_negative, triplet_loss
from trl.metric.library import library_loss
from trl.modes import evaluating
from trl.number import NonNegative
from trl.objectives.base import Batch, Setting, Terms, classification, forward_groups, widened
from trl.randomness import derive_seed


class TripletAdversarial:
    """L = CE(f(x'ₐ), y) + λ1·L_trip + λ2·L_norm (TLA, equation 5), all as means over the batch.

    The anchor x'ₐ is the training attack's image, the positive a clean image of its class, the negative the clean image
    of another class that a fresh pool of `pool` images holds nearest to the anchor (`negative: random` is TLA-RN).

    `positive`: another training image of the class (`other`), the anchor's own clean image plus noise from
    U(-epsilon, epsilon) (`own`), or one triplet with each (`both`; released code, CIFAR-10). `switch_anchor` is TLA-SA:
    the clean image is the anchor, the adversarial one the positive. `norm: squared_mean` is the released code's term,
    inside the triplet loss, so that its weight is λ1·λ2. `metric_loss` names a loss of pytorch-metric-learning that
    takes the triplet's place, built with `metric_options`.
    """

    selects = "val_robust"

    def __init__(
        self,
        setting: Setting,
        *,
        lambda1: NonNegative = 0.5,
        margin: NonNegative = 0.05,
        lambda2: NonNegative = 0.001,
        pool: Annotated[int, Field(ge=2)] = 50,
        positive: Literal["other", "own", "both"] = "other",
        negative: Literal["hard", "random"] = "hard",
        norm: Literal["l2", "squared_mean"] = "l2",
        switch_anchor: bool = False,
        metric_loss: str = "triplet",
        metric_options: dict[str, Any] = {},  # noqa: B006 (read only)
    ) -> None:
        self.setting = setting
        self.lambda1, self.margin, self.lambda2 = lambda1, margin, lambda2
        self.positive, self.negative, self.norm, self.switch_anchor = positive, negative, norm, switch_anchor
        self.metric_loss = None if metric_loss == "triplet" else library_loss(metric_loss, metric_options)
        if pool > len(setting.data.labels):
            raise TrlError(f"pool is {pool}, more than the {len(setting.data.labels)} training images")
        self.pool = ShuffledStream(len(setting.data.labels), pool, derive_seed(setting.seed, "pool"))

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (on adversarial images), triplet, norm, active, positive_ and negative_distance."""
        x_adv = batch.attack(model, batch.x, batch.y)
        x_negative, y_negative, found = self._negatives(model, x_adv, batch)
        features: Any = model.features
        groups = [x_adv, x_negative, *self._positives(batch)]
        adversarial, negative, *positives = map(widened, forward_groups(model, features, groups))
        head: Any = model.head
        terms = classification(head(adversarial), batch.y, self.setting.label_smoothing)
        total = torch.zeros_like(terms["loss"])
        figures: dict[str, list[Tensor]] = {}
        for clean in positives:
            anchor, positive = (clean, adversarial) if self.switch_anchor else (adversarial, clean)
            triplet = triplet_loss(anchor, positive, negative, found, self.margin)
            if self.metric_loss is None:
                loss = triplet.loss
            else:
                loss = self.metric_loss(anchor, positive, negative, batch.y, y_negative, found)
            norm = norm_penalty(anchor, positive, negative, found, self.norm)
            scale = self.lambda2 if self.norm == "l2" else self.lambda1 * self.lambda2
            total = total + self.lambda1 * loss + scale * norm
            for name, value in (
                ("triplet", loss),
                ("norm", norm),
                ("active", triplet.active),
                ("positive_distance", triplet.positive_distance),
                ("negative_distance", triplet.negative_distance),
            ):
                figures.setdefault(name, []).append(value)
        shown = {name: torch.stack(values).mean() for name, values in figures.items()}
        return {**terms, "loss": terms["loss"] + total, **shown}

    def _negatives(self, model: nn.Module, x_adv: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images and labels of the chosen negatives, and which anchors have one in this step's pool."""
        x_pool, y_pool = self.setting.data.take(self.pool.indices(batch.step))
        if self.negative == "random":
            index, found = random_negative(batch.y, y_pool)
        else:
            features: Any = model.features
            with evaluating(model), torch.no_grad():
                similarity = pairwise_cosine(widened(features(x_adv)), widened(features(x_pool)))
            index, found = hardest_negative(similarity, batch.y, y_pool)
        return x_pool[index], y_pool[index], found

    def _positives(self, batch: Batch) -> list[Tensor]:
        epsilon = self.setting.threat.epsilon
        positives = []
        if self.positive in ("own", "both"):
            noise = torch.empty_like(batch.x).uniform_(-epsilon, epsilon)
            positives.append((batch.x + noise).clamp(0, 1))
        if self.positive in ("other", "both"):
            positives.append(self.setting.data.take(self.setting.data.same_class(batch.indices))[0])
        return positives
