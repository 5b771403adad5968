"""Chains of stages that a finalist goes through, one after the other, each in a folder of its own.

The first link is full training (or the network as it was given), its student lies in the finalist's
folder. Link k of the chain lies below it in `k-<stage>-<method>`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from esnac.errors import EsnacError, SettingsError, did_you_mean
from esnac.pruning.importance import Importance
from esnac.settings import build, to_plain
from esnac.stages import STAGES
from esnac.stages._base import Stage, StageContext, StageResult


@dataclass(frozen=True)
class Link:
    """A stage in its place in the chain; number 0 fills the finalist's own folder."""

    number: int
    name: str
    stage: Stage

    def folder(self, finalist: Path) -> Path:
        """Where this link's student of a finalist lies."""
        return finalist / f"{self.number}-{self.name}" if self.number else finalist


@dataclass(frozen=True)
class Step:
    """A link for one finalist: from the student in `source` to the one in `target`."""

    index: int
    link: Link
    source: Path
    target: Path


#: Takes what became of a step: a result or, in one line, why there is none.
Report = Callable[[Step, "StageResult | str"], None]

#: Errors that the user can act on: they end the chain of the finalist they are met in.
FAILURES = (EsnacError, torch.OutOfMemoryError)


def links(chain: Sequence[Mapping[str, Any]]) -> tuple[Link, ...]:
    """The links of a chain from plain data, as `notation.parse` and TOML give it; from number 1.

    Raises SettingsError for an unknown stage, method or key (with the nearest known one) and for a
    value that does not fit.
    """
    found = []
    for number, table in enumerate(chain, start=1):
        name, settings, make = _settings(number, table)
        found.append(Link(number, f"{name}-{settings.method}", make(settings)))
    return tuple(found)


def check_order(chain: Sequence[Link], quantized: str | None = None) -> None:
    """Raises SettingsError for a stage that takes float students alone after one that quantises.

    `quantized` tells how the network that the chain starts from was quantised; None: it was not.
    """
    for link in chain:
        way_out = getattr(link.stage, "needs_float", None)
        if quantized and way_out:
            raise SettingsError(
                f"stages, number {link.number} ({link.name}): the student is quantised already "
                f"({quantized}). {way_out}"
            )
        if getattr(link.stage, "quantizes", False):
            quantized = f"number {link.number}, {link.name}"


def resolve(chain: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The same chain with all settings of each stage filled in. Raises as `links`."""
    found = (_settings(number, table) for number, table in enumerate(chain, start=1))
    return tuple({"stage": name, **to_plain(settings)} for name, settings, _ in found)


def _settings(number: int, table: Mapping[str, Any]) -> tuple[str, Any, Callable[[Any], Stage]]:
    """A stage's name, its settings, and what makes the stage of them."""
    given = dict(table)
    name = given.pop("stage", None)
    if name == "prune" and given.get("method") == "slim":  # the other way to prune
        name, given["method"] = "slim", "scales"
    where = f"stages, number {number}"
    if name == "prune" and given.get("method") in get_args(Importance):
        raise SettingsError(f"{where}: whole channels go by slim({given['method']}).")
    if not isinstance(name, str) or name not in STAGES:
        problem = f"{name!r} is no stage" if name is not None else 'stage = "..." is missing'
        hint = did_you_mean(name, STAGES) if isinstance(name, str) else ""
        raise SettingsError(f"{where}: {problem}.{hint} Known: {', '.join(sorted(STAGES))}.")
    settings, make = STAGES[name].load()
    return name, build(settings, given, where=f"{where} ({name})"), make


def steps(
    index: int, chain: Sequence[Link], source: Path, finalist: Path, done: Container[int]
) -> list[Step]:
    """What is left to do for a finalist: its links in order, without those whose number is done."""
    found = []
    for link in chain:
        target = link.folder(finalist)
        if link.number not in done:
            found.append(Step(index, link, source, target))
        source = target
    return found


def run_here(
    chains: Iterable[Sequence[Step]],
    context: Callable[[Step], AbstractContextManager[StageContext]],
    report: Report,
) -> None:
    """Runs each finalist's steps in this process. One that fails ends the chain it is in."""
    for chain in chains:
        for step in chain:
            outcome: StageResult | str
            try:
                with context(step) as ready:
                    outcome = step.link.stage.run(step.source, step.target, ready)
            except FAILURES as error:
                outcome = reason(error)
            report(step, outcome)
            if isinstance(outcome, str):
                break


def reason(error: Exception) -> str:
    """In one line, why a stage failed and what to do."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The device has too little memory: take one with more, or start another run with a "
            "smaller batch, as in --set finish.training.batch_size=32."
        )
    return str(error)
