"""What an earlier search found out, for one that starts warm: another teacher's students, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esnac.errors import EsnacError, RunError
from esnac.files import reason, write_json
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.moves import Moves
from esnac.graphs.space import Candidates, Space
from esnac.journal import read
from esnac.objective import log_ratio
from esnac.runs import JOURNAL
from esnac.search_spaces import SpaceSettings
from esnac.settings import build, to_plain

FORMAT = 1

#: A run's own teacher graph and space, by which later runs can read its moves.
TEACHER = "teacher.json"

#: The observations that a run started with, copied so that it can be resumed without their run.
EARLIER = "earlier.json"


@dataclass(frozen=True)
class Earlier:
    """Evaluated students of an earlier search: moves and validation accuracies (fractions)."""

    graph: ArchGraph
    settings: SpaceSettings
    teacher_accuracy: float
    moves: tuple[Moves, ...]
    accuracy: tuple[float, ...]

    def space(self) -> Space:
        """The space that the moves belong to."""
        return space_of(self.graph, self.settings)

    def candidates(self) -> Candidates:
        return self.space().candidates(self.moves)

    def log_ratio(self) -> np.ndarray:
        """log(accuracy / teacher's accuracy), bounded below (N, float64)."""
        return log_ratio(np.array(self.accuracy), self.teacher_accuracy, self.graph.num_classes)

    def save(self, path: Path) -> None:
        """Raises EsnacError when the file cannot be written."""
        content = _header(self.graph, self.settings, self.teacher_accuracy)
        content["trials"] = [
            {"moves": moves.to_plain(), "accuracy": accuracy}
            for moves, accuracy in zip(self.moves, self.accuracy, strict=True)
        ]
        write_json(path, content)

    @classmethod
    def load(cls, path: Path) -> Earlier:
        """Reads what `save` wrote; raises EsnacError when it is something else."""
        content, graph, settings = _read(path)
        try:
            rows = [(Moves.from_plain(row["moves"]), row["accuracy"]) for row in content["trials"]]
        except (KeyError, TypeError) as error:
            raise RunError(f"{path} does not describe an earlier search ({error!r}).") from None
        return cls._checked(graph, settings, content["teacher_accuracy"], rows, path)

    @classmethod
    def of_run(cls, run: Path) -> Earlier:
        """What the journal of a run folder says; EsnacError for one without finished trials."""
        content, graph, settings = _read(run / TEACHER)
        proposed: dict[int, Moves] = {}
        rows = []
        for event in read(run / JOURNAL):
            if event.get("state") == "PROPOSED":
                proposed[event["trial"]] = Moves.from_plain(event["moves"])
            elif event.get("state") == "DONE" and event.get("stopped_after") is None:
                rows.append((proposed[event["trial"]], event["accuracy"]))
        return cls._checked(graph, settings, content["teacher_accuracy"], rows, run)

    @classmethod
    def _checked(
        cls,
        graph: ArchGraph,
        settings: SpaceSettings,
        teacher_accuracy: float,
        rows: Sequence[tuple[Moves, float]],
        where: Path,
    ) -> Earlier:
        if not rows:
            raise RunError(f"{where} has no finished evaluation to start from.")
        moves, accuracy = zip(*rows, strict=True)
        found = cls(graph, settings, teacher_accuracy, moves, accuracy)
        found.candidates()  # moves of another space raise here, not in mid-search
        return found


def space_of(graph: ArchGraph, settings: SpaceSettings) -> Space:
    """The space that `settings` make of a teacher's graph."""
    return Space(
        graph,
        tie=settings.tied_by,
        protected=settings.protected,
        multiple=settings.multiple,
        minimum=settings.minimum,
        shrink_limit=settings.shrink_limit,
    )


def save_teacher(
    run: Path, graph: ArchGraph, settings: SpaceSettings, teacher_accuracy: float
) -> None:
    """Leaves in a run folder what `Earlier.of_run` needs; `teacher_accuracy` on validation."""
    write_json(run / TEACHER, _header(graph, settings, teacher_accuracy))


def _header(graph: ArchGraph, settings: SpaceSettings, teacher_accuracy: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "graph": json.loads(graph.to_json()),
        "space": to_plain(settings),
        "teacher_accuracy": teacher_accuracy,
    }


def _read(path: Path) -> tuple[dict[str, Any], ArchGraph, SpaceSettings]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RunError(f"{path}: format {content['format']}, this version reads {FORMAT}.")
        content["teacher_accuracy"] = float(content["teacher_accuracy"])
        graph = ArchGraph.from_json(json.dumps(content["graph"]), path)
        return content, graph, build(SpaceSettings, content["space"], where=str(path))
    except OSError as error:
        raise RunError(
            f"Cannot start warm from {path.parent}: {path.name}: {reason(error)}. It needs a run "
            "of this version of esnac."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EsnacError):
            raise
        raise RunError(f"{path} does not describe a run's teacher ({error!r}).") from None
