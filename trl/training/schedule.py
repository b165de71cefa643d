"""Learning-rate schedules as a pure function of time, so that a resume needs no state of theirs."""

from math import cos, pi
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trl.config import Schedule


def rate_factor(schedule: "Schedule", epoch: float, epochs: int) -> float:
    """What the base learning rate is multiplied by at `epoch` (fractional, from 0) of `epochs`; in [0, 1].

    `triangle` rises linearly over `warmup_epochs` (40 % of the run if 0) and falls linearly to 0 (Wong et al. 2020).
    """
    progress = min(epoch / epochs, 1.0)
    if schedule.name == "triangle":
        peak = (schedule.warmup_epochs or 0.4 * epochs) / epochs
        return progress / peak if progress < peak else (1 - progress) / max(1 - peak, 1e-9)
    warm = warmed_up(epoch, schedule.warmup_epochs)
    if schedule.name == "steps":
        return warm * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    if schedule.name == "cosine":
        return warm * (1 + cos(pi * progress)) / 2
    return warm


def warmed_up(epoch: float, warmup_epochs: float) -> float:
    """The share, in [0, 1], that a value which grows linearly over `warmup_epochs` has reached at `epoch`."""
    return min(1.0, epoch / warmup_epochs) if warmup_epochs else 1.0
