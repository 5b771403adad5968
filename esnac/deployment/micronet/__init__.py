"""The score of the MicroNet challenge (2019) by its official rules, from a graph alone.

    score = storage / storage of the task + operations / operations of the task    (lower is better)

Storage is in 32-bit parameters, operations are multiplies and additions of one example, each in
32-bit operations: one on inputs of a and b bits counts max(a, b) / 32. Since an ArchGraph has every
addition and activation of a network, functional ones included, none of them is missed.
"""

from __future__ import annotations

from esnac.deployment.micronet.description import Description, describe
from esnac.deployment.micronet.published import PUBLISHED
from esnac.deployment.micronet.score import Row, Score, score
from esnac.deployment.micronet.sums import Accumulation
from esnac.deployment.micronet.tasks import TASKS, Task, task

__all__ = [
    "PUBLISHED",
    "TASKS",
    "Accumulation",
    "Description",
    "Row",
    "Score",
    "Task",
    "describe",
    "score",
    "task",
]
