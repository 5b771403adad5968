"""The reward of a student (Cao, Wang, Kitani, ICLR 2019), and what models of accuracy learn."""

from __future__ import annotations

import numpy as np


def compression(params: int, teacher_params: int) -> float:
    """c = 1 - params(student) / params(teacher), the share saved ("ratio" in tables)."""
    return 1 - params / teacher_params


def reward(ratio: float, accuracy: float, teacher_accuracy: float) -> float:
    """f = c (2 - c) a with a = accuracy(student) / accuracy(teacher), both on the same split.

    0 for the teacher itself (c = 0); above 1 only when a student beats its teacher.
    """
    return ratio * (2 - ratio) * accuracy / teacher_accuracy


def log_ratio(accuracy: np.ndarray, teacher_accuracy: float, num_classes: int) -> np.ndarray:
    """log(accuracy / teacher_accuracy) of many students (N, float64).

    Bounded below: under half of what guessing gives, 0.5 / num_classes, all mean the same.
    """
    ratio: np.ndarray = np.log(np.maximum(accuracy, 0.5 / num_classes) / teacher_accuracy)
    return ratio
