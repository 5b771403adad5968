"""Run folders made or found, with the settings they were started with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esnac.data import DataSet
from esnac.errors import RunError, SettingsError
from esnac.preparation import (
    Choices,
    Folders,
    built,
    chain_read,
    explicit_settings,
    resolve_settings,
)
from esnac.runs import Run, compare, describe, run_name
from esnac.search.presets import preset
from esnac.search.settings import RunSettings
from esnac.settings import merge, to_plain
from esnac.stages.pipeline import check_order, links


@contextmanager
def opened(
    choices: Choices, folders: Folders, suffix: str | None, resume: bool
) -> Iterator[tuple[Run, RunSettings]]:
    """A new run, or an old one with the settings it was started with.

    A new run that fails before its first journal line leaves no folder behind. The seed ends the
    name of a run without a `suffix`.
    """
    seed = choices.seed if choices.seed is not None else explicit_settings(choices).get("seed")
    suffix = suffix or str(RunSettings.seed if seed is None else seed)
    name = run_name(choices.network, choices.dataset, suffix)
    if resume:
        run = Run.resume(folders.runs, name)
        with run:
            yield run, _resumed_settings(run, choices)
        return
    Run.check_new(folders.runs, name)
    settings = resolve_settings(choices, folders)
    with _created(folders.runs, name, settings) as run:
        yield run, settings


@contextmanager
def opened_own(root: Path, name: str, settings: RunSettings, resume: bool) -> Iterator[Run]:
    """As `opened`, for a run whose network and data come from Python code."""
    if not resume:
        with _created(root, name, settings) as run:
            yield run
        return
    with Run.resume(root, name) as run:
        _refuse_other(run, settings)
        yield run


def stored_settings(run: Run) -> RunSettings:
    """The settings in the run's folder; of an older run with today's defaults for what is new."""
    return built(run.settings, where=str(run.path))


def own_settings(
    network: str, data: DataSet, settings: RunSettings | Mapping[str, Any] | None
) -> RunSettings:
    """Settings for a user's own network and data: those given, on top of a preset.

    Raises SettingsError for a table that only named networks and data sets need.
    """
    if isinstance(settings, RunSettings):
        return built(to_plain(settings))
    own = chain_read(settings or {})
    for key in ("data", "teacher"):
        if key in own:
            raise SettingsError(f"Data and teacher are given as they are: no {key!r}.")
    names = {"network": network, "dataset": data.name, "preset": "quick"}
    own = merge(names, own)
    return built(merge(preset(own["preset"], len(data.train)), own))


def own_name(name: str | None, settings: RunSettings, suffix: str) -> str:
    """A run's folder in `runs`; RunError for what is no single name."""
    name = name or run_name(settings.network, settings.dataset, suffix)
    if Path(name).name != name:
        raise RunError(f"A run's name is a single folder name; got {name!r}.")
    return name


@contextmanager
def _created(root: Path, name: str, settings: RunSettings) -> Iterator[Run]:
    check_order(links(settings.stages))
    with Run.create(root, name, to_plain(settings)) as run:
        try:
            yield run
        except Exception:
            if not run.events():
                run.discard()
            raise


def _resumed_settings(run: Run, choices: Choices) -> RunSettings:
    """The run's own settings; what the user asks for now must agree with them."""
    wanted: dict[str, Any] = {} if choices.seed is None else {"seed": choices.seed}
    wanted |= {} if choices.preset is None else {"preset": choices.preset}
    explicit = explicit_settings(choices)
    settings = built(merge(run.settings, explicit, wanted), where=str(run.path))
    _refuse_other(run, settings)
    return settings


def _refuse_other(run: Run, wanted: RunSettings) -> None:
    different = compare(to_plain(stored_settings(run)), to_plain(wanted))
    if different:
        raise RunError(
            f"{run.path} was started with other settings ({describe(different)}). "
            "Resume it without them, or start another run with --suffix."
        )
