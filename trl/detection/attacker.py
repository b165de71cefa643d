"""The attacks of a recipe on one classifier: those that know nothing of a detector, and those that know it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from trl.attacks import build_attack_at
from trl.common.seeds import derive_seed
from trl.detection.adaptive import Answers, Guarded, MakeAttack, attack_observed, evade
from trl.detectors import Calibration, Detector, Observed
from trl.evaluation import attack_all
from trl.threat import Threat

if TYPE_CHECKING:
    from trl.config import Detection


@dataclass(frozen=True)
class Attacker:
    """The attacks of `config` on one `model` within `epsilon`, under which their step sizes for the `threat` scale.

    What is repeated under the same `state`, a folder, goes on where it was interrupted (see `evaluate`).
    """

    model: nn.Module
    config: "Detection"
    threat: Threat
    epsilon: float
    seed: int
    state: Path

    def static(self, name: str, images: Observed) -> Observed:
        """What the attack `name`, which knows of no detector, makes of every image."""
        spec = self.config.attacks[name]
        attack = build_attack_at(self.epsilon, spec.name, self.threat, **spec.options)
        x, y, seed = images.images, images.labels, derive_seed(self.seed, name)
        made = attack_all(self.model, x, y, attack, self._within, images.batch_size, seed, state=self.state)
        return images.become(made)

    def adaptive(
        self, detector: Detector, calibration: Calibration, images: Observed, static: Mapping[str, Observed]
    ) -> Guarded:
        """The first `adaptive.samples` images under those of `static` and under all attacks that know the detector."""
        n = self.config.adaptive.samples
        return attack_observed(
            *(detector, calibration, images.first(n)),
            {name: under.first(n) for name, under in static.items()},
            {name: self._make(name) for name in self.config.adaptive.attacks},
            *(self._within, self.seed),
            state=self.state,
        )

    def evading(self, detector: Detector, natural: Tensor, images: Observed) -> Answers:
        """To what the first attack that knows the detector makes of every image, to score below `natural` [n]."""
        make = self._make(next(iter(self.config.adaptive.attacks)))
        return evade(
            *(self.model, detector, natural, images.images, images.labels, make, self._within),
            *(images.batch_size, self.seed),
            state=self.state,
        )

    @property
    def _within(self) -> Threat:
        return replace(self.threat, epsilon=self.epsilon)

    def _make(self, name: str) -> MakeAttack:
        spec = self.config.adaptive.attacks[name]
        return lambda criterion: build_attack_at(self.epsilon, spec.name, self.threat, criterion, **spec.options)
