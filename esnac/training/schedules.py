"""Learning rates as a pure function of the step, so a schedule has no state to save."""

from __future__ import annotations

import math
from bisect import bisect_right

from esnac.training.settings import TrainingSettings

# One cycle (Smith and Topin 2017, arXiv 1708.07120), with the shape of torch's OneCycleLR.
RISE = 0.3  # fraction of all steps before the peak
START = 1 / 25  # first rate / peak
END = START / 1e4  # last rate / peak


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """The rate of `step` (from 0), for all of the `settings.epochs * steps_per_epoch` steps.

    "step" changes it between epochs only, "cosine" (to 0; Loshchilov and Hutter 2017, eq. 5 without
    restarts) and "one_cycle" in every step. The momentum does not cycle.
    """
    total = settings.epochs * steps_per_epoch
    return settings.learning_rate * _factor(settings, step, total, step // steps_per_epoch)


def _factor(settings: TrainingSettings, step: int, total: int, epoch: int) -> float:
    if settings.schedule == "step":
        return settings.gamma ** bisect_right(settings.milestones, epoch)
    if settings.schedule == "cosine":
        return _anneal(1.0, 0.0, step / total)
    if settings.schedule == "one_cycle":
        return _one_cycle(step, total)
    return 1.0


def _one_cycle(step: int, total: int) -> float:
    peak, last = RISE * total - 1, total - 1
    if step <= peak:
        return _anneal(START, 1.0, step / peak if peak > 0 else 1.0)
    return _anneal(1.0, END, (step - peak) / (last - peak) if last > peak else 1.0)


def _anneal(start: float, end: float, fraction: float) -> float:
    """Half a cosine wave from `start` (fraction 0) to `end` (fraction 1)."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
