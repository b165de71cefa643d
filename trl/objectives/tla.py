"""TLA, triplet-loss adversarial training (Mao et al., NeurIPS 2019, arXiv 1909.00900), and its variants."""

from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from trl.common.errors import TrlError
from trl.common.numbers import NonNegative
from trl.common.seeds import derive_seed
from trl.data import ShuffledStream
from trl.metric import hardest_negative, norm_penalty, pairwise_cosine, random_negative, triplet_loss
from trl.metric.library import library_loss, offered_loss
from trl.nn.modes import frozen
from trl.objectives.base import Batch, Objective, Setting, Terms, at_least_fp32, classification, forward_groups
from trl.objectives.trades import ASCENDS, traded
from trl.registry import refuse


def _offered(name: str) -> str:
    try:
        return offered_loss(name)
    except TrlError as error:
        raise refuse(str(error)) from None


class TripletAdversarial(Objective):
    """L = CE(f(x'ₐ), y) + λ1·L_trip + λ2·L_norm (TLA, equation 5), all as means over the batch.

    `base: trades` puts the loss of TRADES, with its `beta` and its training attack, in place of the cross-entropy.

    The anchor x'ₐ is the training attack's image, the positive a clean image of its class, the negative the clean image
    of another class that a fresh pool of `pool` images holds nearest to the anchor (`negative: random` is TLA-RN).
    `negative: queue` is the quicker way: the pool are the last `pool` embeddings of positives, this step's among them,
    and the negative is such an embedding itself, without a gradient (as in Wang et al. 2020, arXiv 1912.06798).
    Earlier steps take part only where `pool` exceeds the positives of a step.

    `positive`: another training image of the class (`other`), the anchor's own clean image plus noise from
    U(-epsilon, epsilon) (`own`), or one triplet with each (`both`; released code, CIFAR-10). `switch_anchor` is TLA-SA:
    the clean image is the anchor, the adversarial one the positive. `norm: squared_mean` is the released code's term,
    inside the triplet loss, so that its weight is λ1·λ2. `metric_loss` names a loss of pytorch-metric-learning that
    takes the triplet's place, built with `metric_options`; weights of its own are trained with the model's.

    Where processes share the batch, they share the pool, too, of which each embeds a part; with `share_pool: false`
    each searches its own part alone. Means over triplets are over those of a process.
    """

    queue: Tensor
    queue_labels: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        lambda1: NonNegative = 0.5,
        margin: NonNegative = 0.05,
        lambda2: NonNegative = 0.001,
        pool: Annotated[int, Field(ge=2)] = 50,
        positive: Literal["other", "own", "both"] = "other",
        negative: Literal["hard", "random", "queue"] = "hard",
        share_pool: bool = True,
        base: Literal["at", "trades"] = "at",
        beta: NonNegative = 6.0,
        norm: Literal["l2", "squared_mean"] = "l2",
        switch_anchor: bool = False,
        metric_loss: Annotated[str, AfterValidator(_offered)] = "triplet",
        metric_options: dict[str, Any] = {},  # noqa: B006 (read only)
    ) -> None:
        super().__init__(setting)
        self.lambda1, self.margin, self.lambda2 = lambda1, margin, lambda2
        self.positive, self.negative, self.norm, self.switch_anchor = positive, negative, norm, switch_anchor
        self.base, self.beta = base, beta
        if base == "trades":
            self.attack_options = ASCENDS
        if pool > len(setting.data.labels):
            raise TrlError(f"pool is {pool}, more than the {len(setting.data.labels)} training images")
        self.pool = ShuffledStream(len(setting.data.labels), pool, derive_seed(setting.seed, "pool"))
        self.share_pool = share_pool
        if negative == "queue":
            if setting.embedding is None:
                raise TrlError("negative: queue holds embeddings: give Setting their width, model.head.in_features")
            self.register_buffer("queue", torch.zeros(pool, setting.embedding))
            self.register_buffer("queue_labels", torch.full((pool,), -1))  # no image yet
        self.metric_loss: nn.Module | None = None
        if metric_loss != "triplet":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(setting.seed, "metric loss"))  # it may have weights
                self.metric_loss = library_loss(metric_loss, metric_options, setting.data.classes, setting.embedding)

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, those of the base, triplet, norm, active, positive_ and negative_distance.

        The base's are ce and accuracy on adversarial images; for `trades` on clean ones, and divergence.
        """
        x_adv = batch.attack(model, batch.x, batch.y)
        also = [batch.x] if self.base == "trades" else []
        features: Any = model.features
        head: Any = model.head
        if self.negative == "queue":
            groups = [x_adv, *also, *self._positives(batch)]
            adversarial, *others = map(at_least_fp32, forward_groups(model, features, groups))
            natural, positives = others[: len(also)], others[len(also) :]
            negative, y_negative, found = self._from_queue(adversarial, positives, batch.y)
        else:
            x_negative, y_negative, found = self._negatives(model, x_adv, batch)
            groups = [x_adv, x_negative, *also, *self._positives(batch)]
            adversarial, negative, *others = map(at_least_fp32, forward_groups(model, features, groups))
            natural, positives = others[: len(also)], others[len(also) :]
        if natural:
            terms = traded(head(natural[0]), head(adversarial), batch.y, self.setting.label_smoothing, self.beta)
        else:
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
        data = self.setting.data
        x_pool, y_pool = data.take(self._pool_at(batch.step))
        data.ahead(self._pool_at(batch.step + 1))
        if self.negative == "random":
            x_pool, y_pool = self._whole(x_pool), self._whole(y_pool)
            index, found = random_negative(batch.y, y_pool)
        else:
            anchors, pool = self._embed(model, torch.cat([x_adv, x_pool])).tensor_split([len(x_adv)])
            x_pool, y_pool, pool = self._whole(x_pool), self._whole(y_pool), self._whole(pool)
            index, found = hardest_negative(pairwise_cosine(anchors, pool), batch.y, y_pool)
        return x_pool[index], y_pool[index], found

    def _pool_at(self, step: int) -> Tensor:
        """This process's part of the pool of `step`."""
        return self.setting.processes.rows(self.pool.indices(step))

    def _whole(self, part: Tensor) -> Tensor:
        """The pool, of which this process has a part; that part alone without `share_pool`."""
        return self.setting.processes.gather(part)[: self.pool.batch_size] if self.share_pool else part

    def _embed(self, model: nn.Module, x: Tensor) -> Tensor:
        features: Any = model.features
        # in full precision, whatever the training passes use: near negatives differ by less than bf16 resolves
        with frozen(model), torch.autocast(x.device.type, enabled=False):
            return at_least_fp32(features(x))

    def _from_queue(self, anchors: Tensor, positives: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings and labels of the chosen negatives, and which anchors have one; the queue takes the positives."""
        gather, size = self.setting.processes.gather, self.pool.batch_size
        self.queue.copy_(torch.cat([self.queue, *map(gather, positives)])[-size:])
        self.queue_labels.copy_(torch.cat([self.queue_labels, *[gather(y)] * len(positives)])[-size:])
        index, found = hardest_negative(pairwise_cosine(anchors.detach(), self.queue), y, self.queue_labels)
        return self.queue[index], self.queue_labels[index], found

    def _positives(self, batch: Batch) -> list[Tensor]:
        epsilon = self.setting.threat.epsilon
        positives = []
        if self.positive in ("own", "both"):
            noise = torch.empty_like(batch.x).uniform_(-epsilon, epsilon)
            positives.append((batch.x + noise).clamp(0, 1))
        if self.positive in ("other", "both"):
            positives.append(self.setting.data.take(self.setting.data.same_class(batch.indices))[0])
        return positives
