"""Several attacks as one: each runs on the samples that earlier attacks did not fool."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trl.attacks.base import Attack, judge
from trl.attacks.criterion import MISCLASSIFIED, Criterion, check_criterion
from trl.attacks.losses import cw_margin
from trl.common.errors import TrlError
from trl.common.images import check_input
from trl.nn.modes import frozen


class Ensemble:
    """Runs `parts` in order as one attack (model, x, y) → x_adv: the first success, else the last part's result.

    `evaluate` runs the parts itself, one after another over all samples, so that it can stop and resume between them.
    """

    def __init__(
        self,
        parts: Mapping[str, Attack],
        criterion: Criterion = MISCLASSIFIED,
    ) -> None:
        check_criterion(criterion)
        if not parts:
            raise TrlError("an ensemble needs at least one attack")
        self.parts, self.criterion = dict(parts), criterion

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial images, shaped like x."""
        x, y, classes = check_input(x, y)
        best, left = x.clone(), torch.arange(len(x), device=x.device)
        for attack in self.parts.values():
            if len(left) == 0:
                break
            best[left] = attack(model, x[left], y[left])
            with frozen(model):
                fooled, _ = judge(
                    self.criterion.view(model),
                    best[left],
                    y[left],
                    self.criterion,
                    self.criterion.loss(cw_margin),
                    classes,
                )
            left = left[~fooled]
        return best


def parts_of(name: str, attack: Attack) -> dict[str, Attack]:
    """The attacks to run in order: the parts of an ensemble as `name/part`, any other attack as `name`."""
    if isinstance(attack, Ensemble):
        return {f"{name}/{part}": member for part, member in attack.parts.items()}
    return {name: attack}
