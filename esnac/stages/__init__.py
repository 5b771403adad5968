"""Stages: what happens to the best students after the search.

A stage is named in `STAGES`, as a chain in text or TOML names it (`stages/pipeline.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class StageKind:
    """Where a stage's dataclass of settings and its class are; they are imported when used.

    The first field of the settings is `method`, one of a few words. The class takes the settings
    and keeps the contract of `stages/_base.py`.
    """

    module: str
    settings: str
    stage: str

    def load(self) -> tuple[type[Any], Callable[[Any], Any]]:
        """The two classes."""
        module = import_module(self.module)
        return getattr(module, self.settings), getattr(module, self.stage)


STAGES: dict[str, StageKind] = {
    "export": StageKind("esnac.stages.export", "ExportSettings", "ExportStage"),
    "quantize": StageKind("esnac.stages.quantize", "QuantizeSettings", "QuantizeStage"),
    "train": StageKind("esnac.stages.train", "TrainSettings", "TrainStage"),
    "prune": StageKind("esnac.stages.prune", "PruneSettings", "PruneStage"),
    "slim": StageKind("esnac.stages.slim", "SlimSettings", "SlimStage"),
    "schedule": StageKind("esnac.stages.schedule", "ScheduleSettings", "ScheduleStage"),
}
