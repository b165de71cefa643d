"""Localized adversarial training, after Rothberg et al. 2019 (arXiv 1909.04779): perturb only a part of the image."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import nn

from trl.common.numbers import Real
from trl.objectives.base import Batch, Objective, Setting, Terms, classification, forward_groups
from trl.regions import build_region
from trl.spec import RegionSpec


class Localized(Objective):
    """(1 - `rho`) · CE(clean) + `rho` · CE(adversarial), where the training attack stays inside `region`.

    The region takes the place of the threat's own. The paper gives no `rho`; 0.5 is our reading of it. A localized
    model is not robust to perturbations elsewhere.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        rho: Annotated[Real, Field(ge=0, le=1)] = 0.5,
        region: RegionSpec = {"name": "background"},  # noqa: B006 (read only)
    ) -> None:
        super().__init__(setting)
        self.rho = rho
        self.threat = replace(setting.threat, region=build_region(**region))

    def forward(self, model: nn.Module, batch: Batch) -> Terms:
        """Terms: loss, ce, accuracy (both on adversarial images), clean_ce."""
        x_adv = batch.attack(model, batch.x, batch.y)
        adversarial, clean = forward_groups(model, model, [x_adv, batch.x])
        terms = classification(adversarial, batch.y, self.setting.label_smoothing)
        clean_ce = classification(clean, batch.y, self.setting.label_smoothing)["ce"]
        return {**terms, "loss": (1 - self.rho) * clean_ce + self.rho * terms["ce"], "clean_ce": clean_ce}
