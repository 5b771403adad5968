"""What a user starts: a teacher, a search, its finish, or stages alone.

The command line and Python callers come in here; the parts of a run are in `esnac.session`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esnac import data as data_room
from esnac import networks, teachers
from esnac.cluster import ClusterSettings
from esnac.data import DataSet
from esnac.errors import EsnacError, RunError, WeightsError
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.preparation import (
    Choices,
    Folders,
    Teacher,
    explicit_settings,
    measured_teacher,
    new_network,
    prepare_teacher,
    resolve_settings,
    trained_teacher,
)
from esnac.report.summary import RunSummary, summarise
from esnac.runs import Run
from esnac.runtime import resolve_device
from esnac.search.earlier import EARLIER, Earlier
from esnac.search.settings import RunSettings
from esnac.session import Session, finishing, given, records, searching
from esnac.session.opening import opened, opened_own, own_name, own_settings, stored_settings
from esnac.session.workers import check_workers, workers
from esnac.settings import to_plain
from esnac.stages.measure import load_student
from esnac.stages.notation import parse
from esnac.stages.pipeline import check_order, links, resolve

#: A chain of stages as text or as plain data.
Stages = str | Sequence[Mapping[str, Any]]

#: Ends the name of a run without a search.
COMPRESSION = "compress"


@dataclass(frozen=True)
class SearchResult:
    """What a run left behind: its folder, its figures, and the best student to use at once."""

    path: Path
    summary: RunSummary

    @classmethod
    def of(cls, run: Run) -> SearchResult:
        return cls(run.path, summarise(run.events(), run.path.name, run.path))

    def best_student(self) -> nn.Module:
        """The finalist that is best on the validation images, loaded."""
        best = self.summary.best_finalist()
        if best is None or best.path is None:
            raise EsnacError(f"{self.path} has no finalist yet.")
        return load_student(self.path / best.path)


def make_teacher(
    choices: Choices, folders: Folders, *, device: str = "auto", force: bool = False
) -> tuple[teachers.Card, Path]:
    """`esnac teacher`: trains a teacher by its recipe; returns its card and folder."""
    where = resolve_device(device)
    settings = resolve_settings(choices, folders)
    name = teachers.folder_name(settings.network, settings.dataset, to_plain(settings.data))
    there = teachers.find([folders.new_teachers], name)
    if there and not force:
        raise WeightsError(f"There is a teacher in {there}. Replace it with --force.")
    data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
    module = new_network(settings, data)
    folder = folders.new_teachers / name
    return trained_teacher(settings, module, data, folder, where, again=force), folder


def start(
    choices: Choices,
    folders: Folders,
    *,
    suffix: str | None = None,
    device: str = "auto",
    resume: bool = False,
    weights: Path | None = None,
    warm_start: Path | None = None,
    cluster: ClusterSettings | None = None,
) -> Path:
    """`esnac search`: runs or resumes a whole run; returns its folder.

    `warm_start`: the folder of an earlier run whose evaluations the model learns from as well.
    `cluster`: where to evaluate and to train the finalists; None: one after the other, here.
    """
    where = resolve_device(device)
    if warm_start is not None and resume:
        raise RunError("A run is started warm, not resumed so: leave --warm-start out.")
    earlier = None if warm_start is None else Earlier.of_run(warm_start)
    with opened(choices, folders, suffix, resume) as (run, settings):
        if records.searches(run) is False:
            raise RunError(f"{run.path} does not search. Go on with it: esnac compress --resume.")
        check_workers(settings, cluster)
        if earlier is not None:
            earlier.save(run.path / EARLIER)
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        if not resume:  # before hours are spent on a teacher
            graph = trace(new_network(settings, data), data.input_shape)
            searching.check_goal(graph, settings, where, earlier)
        with workers(settings, cluster) as joined:
            teacher = prepare_teacher(
                settings,
                data,
                folders,
                where,
                weights or records.recorded_file(run),
                recipe_set="teacher" in explicit_settings(choices),
                may_train=not records.recorded_teacher(run),
            )
            session = Session(run, settings, data, teacher, where, joined)
            searching.search(session)
            finishing.finish(session)
        return run.path


def finish(
    path: Path,
    folders: Folders,
    *,
    device: str = "auto",
    weights: Path | None = None,
    stages: Stages | None = None,
    cluster: ClusterSettings | None = None,
) -> None:
    """`esnac finish`: ends the search where it stands and trains the best students fully.

    `stages`: the whole chain that they go through then; what is done of it is not repeated.
    """
    where = resolve_device(device)
    wanted = None if stages is None else _chain(stages)
    with Run.open(path, write=True) as run:
        settings = stored_settings(run)
        check_workers(settings, cluster, searches=False)
        searched = records.searches(run)
        done = any(event.get("state") == "DONE" for event in run.events())
        if searched is None or (searched and not done):
            raise RunError(f"{path} has no finished evaluation yet. Go on with it first: --resume.")
        if searched and settings.network not in networks.NETWORKS and ":" not in settings.network:
            raise RunError(
                f"{path} compresses a module of Python code. Finish it there: "
                "esnac.run_search(..., resume=True)."
            )
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        if not searched:
            teacher = given.kept_teacher(run, data, where)
        else:
            file = weights or records.recorded_file(run)
            teacher = prepare_teacher(settings, data, folders, where, file, may_train=False)
        records.refuse_other_teacher(run, teacher)
        if wanted is not None:
            records.change_chain(run, settings, wanted)
        with workers(settings, cluster) as joined:
            session = Session(run, settings, data, teacher, where, joined)
            if records.finalists(run) is None:
                searching.choose(session, searching.restored(session))
            finishing.finish(session)


def start_compression(
    choices: Choices,
    folders: Folders,
    *,
    suffix: str | None = None,
    device: str = "auto",
    resume: bool = False,
    weights: Path | None = None,
    cluster: ClusterSettings | None = None,
) -> Path:
    """`esnac compress`: a trained network through a chain of stages; returns the run's folder.

    `weights`: a file for the network that `choices` name, or the folder of a student; None: the
    teacher of that name, which must be there.
    """
    where = resolve_device(device)
    with opened(choices, folders, suffix or COMPRESSION, resume) as (run, settings):
        given.check(run, settings)
        check_workers(settings, cluster, searches=False)
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        teacher = given.teacher(run, settings, data, folders, where, weights)
        _compress(run, settings, data, teacher, where, cluster)
        return run.path


def rehearse(
    choices: Choices, folders: Folders, *, weights: Path | None = None
) -> dict[str, list[tuple[str, ...]]]:
    """`esnac compress --dry-run`: for each stage rows of text, what would fire at which epoch.

    The first row is the header; a stage in which nothing depends on the epoch has no rows. Nothing
    is trained or written. `weights` as for `start_compression`. Raises EsnacError for whatever does
    not fit the network.
    """
    settings = resolve_settings(choices, folders)
    given.require_stages(settings)
    data = data_room.load(settings.dataset, folders.data, settings.data)
    teacher = given.named_teacher(settings, data, folders, resolve_device("cpu"), weights)
    found: dict[str, list[tuple[str, ...]]] = {}
    chain = links(settings.stages)
    check_order(chain, given.quantized(teacher))
    for link in chain:
        tell = getattr(link.stage, "rehearse", None)
        rows: list[tuple[str, ...]] = []
        if tell is not None:
            student = StudentNetwork(teacher.graph, teacher.weights)
            rows = tell(student, settings.finish.training)
        found[f"{link.number}-{link.name}"] = rows
    return found


def run_search(
    model: nn.Module,
    data: DataSet,
    settings: RunSettings | Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    resume: bool = False,
    cluster: ClusterSettings | None = None,
) -> SearchResult:
    """Compresses a trained module of the user's own.

    `model`: any network that `esnac.trace` understands, trained; it is not changed. `data`: a
    `DataSet` (for own tensors: `esnac.data.from_tensors`). `settings`: a `RunSettings`, or nested
    plain settings on top of the "quick" preset, such as `{"search": {"steps": 10}}`. The run is
    kept in `runs/name`; `resume` goes on with one that was interrupted. `cluster`:
    `ClusterSettings("ray", workers=4)` evaluates on several workers.
    """
    where = resolve_device(device)
    settings = own_settings(type(model).__name__, data, settings)
    check_workers(settings, cluster)
    root = Path(runs).absolute()
    name = own_name(name, settings, str(settings.seed))
    data = data.to(where)
    if not resume:
        Run.check_new(root, name)
        searching.check_goal(trace(model, data.input_shape), settings, where, None)
    with workers(settings, cluster) as joined:
        teacher = measured_teacher(model, data, where)
        with opened_own(root, name, settings, resume) as run:
            session = Session(run, settings, data, teacher, where, joined)
            searching.search(session)
            finishing.finish(session)
            return SearchResult.of(run)


def compress(
    model: nn.Module,
    data: DataSet,
    stages: Stages | None = None,
    settings: RunSettings | Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    resume: bool = False,
    cluster: ClusterSettings | None = None,
) -> SearchResult:
    """Takes a trained module of the user's own through a chain of stages, without a search.

    `stages`: text such as `"prune(agp, sparsity=0.8), train(epochs=10)"`, or a list of tables with
    `stage`, `method` and that stage's settings. The module is its own teacher. The rest is as for
    `run_search`.
    """
    where = resolve_device(device)
    settings = own_settings(type(model).__name__, data, settings)
    if stages is not None:
        settings = replace(settings, stages=_chain(stages))
    root = Path(runs).absolute()
    name = own_name(name, settings, COMPRESSION)
    data = data.to(where)
    with opened_own(root, name, settings, resume) as run:
        given.check(run, settings)
        check_workers(settings, cluster, searches=False)
        teacher = measured_teacher(model, data, where)
        _compress(run, settings, data, teacher, where, cluster)
        return SearchResult.of(run)


def _compress(
    run: Run,
    settings: RunSettings,
    data: DataSet,
    teacher: Teacher,
    device: torch.device,
    cluster: ClusterSettings | None,
) -> None:
    with workers(settings, cluster) as joined:
        session = Session(run, settings, data, teacher, device, joined)
        given.record_given(session)
        finishing.finish(session)


def _chain(stages: Stages) -> tuple[dict[str, Any], ...]:
    return resolve(parse(stages) if isinstance(stages, str) else stages)
