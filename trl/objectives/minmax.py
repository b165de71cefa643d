"""Generalised adversarial training over several threats (AMPGD, Wang et al., NeurIPS 2021, arXiv 1906.03563)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from trl.attacks import build_attack_at
from trl.attacks.minmax import project_simplex
from trl.common.numbers import Count, NonNegative, Positive
from trl.objectives.base import Batch, Objective, Setting, Terms, at_least_fp32, forward_groups
from trl.spec import Section
from trl.threat import build_threat

Strategy = Literal["minmax", "max", "average"]


class TrainingThreat(Section):
    """A threat to train against, by PGD with `steps`; `step_size` null is 2.5·epsilon/steps."""

    norm: Literal["linf", "l2", "l1"]
    epsilon: NonNegative
    steps: Count = 10
    step_size: Positive | None = None


class MinMax(Objective):
    """Mean over the batch of max over w of Σ wᵢ·CE(f(x'ᵢ), y) - γ/2·‖w - 1/K‖², x'ᵢ by PGD within threat i of K.

    The weights w, of each image its own, lie in the simplex; the maximum over them is taken exactly, where the paper
    takes a step of ascent after each one of the attack. `strategy: max` trains on the worst of the threats (γ = 0),
    `average` on all alike (γ → ∞), as Tramèr & Boneh (2019, arXiv 1904.13000) do. The recipe's training attack is not
    used; its warm-up of epsilon holds for all threats.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        threats: Annotated[dict[str, TrainingThreat], Field(min_length=2)],
        gamma: NonNegative = 4.0,
        strategy: Strategy = "minmax",
    ) -> None:
        super().__init__(setting)
        self.threats, self.gamma, self.strategy = threats, gamma, strategy

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce (weighted), accuracy (under all threats), and by threat ce_<name> and weight_<name>."""
        attacked = []
        for given in self.threats.values():
            threat, options = build_threat(given.norm, given.epsilon), given.model_dump(include={"steps", "step_size"})
            attack = build_attack_at(given.epsilon * batch.warmup, "pgd", threat, **options)
            attacked.append(batch.once(attack)(model, batch.x, batch.y))
        logits = [at_least_fp32(part) for part in forward_groups(model, model, attacked)]
        smoothing = self.setting.label_smoothing
        losses = torch.stack(
            [cross_entropy(part, batch.y, reduction="none", label_smoothing=smoothing) for part in logits], 1
        )
        weights = threat_weights(losses.detach(), self.gamma, self.strategy)
        ce = (weights * losses).sum(1).mean()
        penalty = self.gamma / 2 * (weights - 1 / len(logits)).square().sum(1).mean()
        right = torch.stack([part.argmax(1) == batch.y for part in logits], 1).all(1)
        terms = {"loss": ce - penalty if self.strategy == "minmax" else ce, "ce": ce, "accuracy": right.float().mean()}
        for i, name in enumerate(self.threats):
            terms |= {f"ce_{name}": losses[:, i].mean(), f"weight_{name}": weights[:, i].mean()}
        return terms


def threat_weights(losses: Tensor, gamma: float, strategy: Strategy) -> Tensor:
    """The weights [n,K] at which Σ wᵢ·lossᵢ - gamma/2·‖w - 1/K‖² is largest."""
    count = losses.shape[1]
    if strategy == "average":
        return torch.full_like(losses, 1 / count)
    if strategy == "max" or gamma == 0:
        return one_hot(losses.argmax(1), count).to(losses.dtype)
    return project_simplex(1 / count + losses / gamma)
