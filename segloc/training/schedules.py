"""Schedules as arrays over iterations, so that resuming needs no scheduler state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cosine_schedule(base: float, steps: int, warmup: int = 0) -> np.ndarray:
    """Cosine decay from `base` to zero after a linear warm-up.

    Args:
        base: peak value.
        steps: length of the schedule, including the warm-up.
        warmup: number of warm-up steps.

    Returns:
        [steps] float64.
    """
    decay = np.arange(max(steps - warmup, 0)) / max(steps - warmup, 1)
    values = base * 0.5 * (1 + np.cos(np.pi * decay))
    return np.concatenate([base * (np.arange(warmup) + 1) / (warmup + 1), values])[:steps]


def step_schedule(
    base: float,
    steps: int,
    warmup: int = 0,
    warmup_start: float = 1 / 3,
    milestones: Sequence[float] = (8 / 12, 11 / 12),
    gamma: float = 0.1,
) -> np.ndarray:
    """Step decay after a linear warm-up (SDANet: warm-up from a third, steps at epochs 8 and 11 of 12).

    Args:
        base: value after the warm-up.
        steps: length of the schedule.
        warmup: number of warm-up steps.
        warmup_start: fraction of `base` at the first step.
        milestones: fractions of `steps` at which the value is multiplied by `gamma`.
        gamma: factor at each milestone.

    Returns:
        [steps] float64.
    """
    iterations = np.arange(steps)
    values = np.full(steps, float(base))
    for milestone in milestones:
        values[iterations >= round(milestone * steps)] *= gamma
    ramp = warmup_start + (1 - warmup_start) * iterations[:warmup] / max(warmup, 1)
    values[:warmup] *= ramp
    return values
