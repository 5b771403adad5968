"""A whole run: search and full training, on top of all rooms.

The command line and `esnac.run_search` are thin callers of what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esnac import data as data_room
from esnac import networks, teachers
from esnac.cluster import Cluster, ClusterSettings, connected
from esnac.data import DataSet
from esnac.deployment.latency import LayerTimes
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, RunError, SettingsError, TrainingError, WeightsError
from esnac.executors import SerialExecutor
from esnac.graphs import student as students
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.cost import cost
from esnac.graphs.trace import trace
from esnac.objective import compression, reward
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
from esnac.report.epochs import EpochProgress
from esnac.report.progress import Progress
from esnac.report.summary import RunSummary, summarise
from esnac.report.tensorboard import ScalarLog
from esnac.runs import Run, compare, describe, run_name
from esnac.runtime import derive_seed, resolve_device
from esnac.search.earlier import EARLIER, Earlier, save_teacher
from esnac.search.evaluation import Evaluator
from esnac.search.feed import Feed, Recorder, StepwiseFeed, StreamingFeed, restore
from esnac.search.loop import search_loop
from esnac.search.presets import preset
from esnac.search.searcher import Searcher
from esnac.search.settings import RunSettings
from esnac.settings import build, merge, to_plain
from esnac.stages._base import StageContext, StageResult, clean
from esnac.stages.full_training import FullTraining
from esnac.stages.pipeline import Link, Step, run_here, steps
from esnac.stages.teacher import versions


@dataclass(frozen=True)
class SearchResult:
    """What a run left behind: its folder, its figures, and the best student to use at once."""

    path: Path
    summary: RunSummary

    def best_student(self) -> nn.Module:
        """The finalist that is best on the validation images, loaded."""
        best = self.summary.best_finalist()
        if best is None or best.path is None:
            raise EsnacError(f"{self.path} has no finalist yet.")
        return students.load(self.path / best.path)


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
    with _opened(choices, folders, suffix, resume) as (run, settings):
        _check_mode(settings, cluster)
        if earlier is not None:
            earlier.save(run.path / EARLIER)
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        if not resume:  # before hours are spent on a teacher
            graph = trace(new_network(settings, data), data.input_shape)
            _check_goal(graph, settings, where, earlier)
        with _workers(cluster, settings) as workers:
            teacher = prepare_teacher(
                settings,
                data,
                folders,
                where,
                weights or _recorded_file(run),
                recipe_set="teacher" in explicit_settings(choices),
                may_train=not _recorded_teacher(run),
            )
            _run(run, settings, data, teacher, where, workers)
        return run.path


def finish(
    path: Path,
    folders: Folders,
    *,
    device: str = "auto",
    weights: Path | None = None,
    cluster: ClusterSettings | None = None,
) -> None:
    """`esnac finish`: ends the search where it stands and trains the best students fully."""
    where = resolve_device(device)
    with Run.open(path, write=True) as run:
        settings = build(RunSettings, run.settings, where=str(path))
        _check_finish(settings, cluster)
        if not any(event.get("state") == "DONE" for event in run.events()):
            raise RunError(
                f"{path} has no finished evaluation yet. Resume its search first: --resume."
            )
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        if settings.network not in networks.NETWORKS and ":" not in settings.network:
            raise RunError(
                f"{path} compresses a module of Python code. Finish it there: "
                "esnac.run_search(..., resume=True)."
            )
        teacher = prepare_teacher(
            settings, data, folders, where, weights or _recorded_file(run), may_train=False
        )
        _refuse_other_teacher(run, teacher)
        targets = _targets(teacher, settings, data, where)
        searcher = _searcher(run, teacher, settings, where)
        restore(searcher, run.events())
        with _workers(cluster, settings) as workers:
            _finish(run, settings, data, teacher, targets, searcher, where, workers)


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
    if not isinstance(settings, RunSettings):
        own = dict(settings or {})
        for key in ("data", "teacher"):
            if key in own:
                raise SettingsError(
                    f"run_search gets its data and teacher as they are: no {key!r}."
                )
        names = {"network": type(model).__name__, "dataset": data.name, "preset": "quick"}
        own = merge(names, own)
        settings = build(RunSettings, merge(preset(own["preset"], len(data.train)), own))
    _check_mode(settings, cluster)
    root = Path(runs).absolute()
    name = name or run_name(settings.network, settings.dataset, str(settings.seed))
    if Path(name).name != name:
        raise RunError(f"A run's name is a single folder name; got {name!r}.")
    if not resume:
        Run.check_new(root, name)
    data = data.to(where)
    if not resume:
        _check_goal(trace(model, data.input_shape), settings, where, None)
    with _workers(cluster, settings) as workers:
        teacher = measured_teacher(model, data, where)
        opened = Run.resume(root, name) if resume else Run.create(root, name, to_plain(settings))
        with opened as run:
            _refuse_other(run, to_plain(settings))
            _run(run, settings, data, teacher, where, workers)
            return SearchResult(run.path, summarise(run.events(), run.path.name, run.path))


@contextmanager
def _workers(cluster: ClusterSettings | None, settings: RunSettings) -> Iterator[Cluster | None]:
    """The cluster that is asked for; None for this process alone."""
    if _alone(cluster):
        yield None
        return
    assert cluster is not None
    with connected(cluster) as joined:
        if settings.finish.workers > joined.workers:
            raise SettingsError(
                f"finish.workers = {settings.finish.workers}, but the cluster has "
                f"{joined.workers} at a time. Set fewer, or add --workers and nodes."
            )
        yield joined


def _alone(cluster: ClusterSettings | None) -> bool:
    return cluster is None or cluster.executor == "serial"


def _check_mode(settings: RunSettings, cluster: ClusterSettings | None) -> None:
    """Raises SettingsError for what one process cannot do."""
    for key, value in (("mode", "asynchronous"), ("early_stopping", "asha")):
        if _alone(cluster) and getattr(settings.search, key) == value:
            raise SettingsError(f"search.{key} = {value!r} needs workers: add --executor ray.")
    limits = settings.objective
    timed = limits.max_latency is not None
    timed |= limits.kind == "pareto" and "latency" in limits.measures
    if timed and cluster is not None and cluster.executor == "ray" and cluster.address is None:
        raise SettingsError(
            "Latency cannot be measured while workers use the machine: leave --workers out, or "
            "join a cluster with --address."
        )
    _check_finish(settings, cluster)


def _check_finish(settings: RunSettings, cluster: ClusterSettings | None) -> None:
    workers = settings.finish.workers
    if workers > 1 and _alone(cluster):
        raise SettingsError(f"finish.workers = {workers} needs workers: add --executor ray.")


@contextmanager
def _opened(
    choices: Choices, folders: Folders, suffix: str | None, resume: bool
) -> Iterator[tuple[Run, RunSettings]]:
    """A new run, or an old one with the settings it was started with.

    A new run that fails before its first journal line leaves no folder behind.
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
    run = Run.create(folders.runs, name, to_plain(settings))
    with run:
        try:
            yield run, settings
        except Exception:
            if not run.events():
                run.discard()
            raise


def _resumed_settings(run: Run, choices: Choices) -> RunSettings:
    """The run's own settings; what the user asks for now must agree with them."""
    own = run.settings
    wanted: dict[str, Any] = {} if choices.seed is None else {"seed": choices.seed}
    wanted |= {} if choices.preset is None else {"preset": choices.preset}
    explicit = explicit_settings(choices)
    settings = build(RunSettings, merge(own, explicit, wanted), where=str(run.path))
    _refuse_other(run, to_plain(settings))
    return settings


def _refuse_other(run: Run, wanted: dict[str, Any]) -> None:
    different = compare(run.settings, wanted)
    if different:
        raise RunError(
            f"{run.path} was started with other settings ({describe(different)}). "
            "Resume it without them, or start another run with --suffix."
        )


def _searcher(run: Run, teacher: Teacher, settings: RunSettings, device: torch.device) -> Searcher:
    earlier = run.path / EARLIER
    times = LayerTimes(device, cache=run.path / "latency.json")
    known = Earlier.load(earlier) if earlier.exists() else None
    return _make_searcher(teacher.graph, teacher.validation_accuracy, settings, times, known)


def _check_goal(
    graph: ArchGraph, settings: RunSettings, device: torch.device, earlier: Earlier | None
) -> None:
    """Raises SettingsError for a goal that cannot be met or an engine that cannot start warm."""
    _make_searcher(graph, 1.0, settings, LayerTimes(device), earlier)


def _make_searcher(
    graph: ArchGraph,
    accuracy: float,
    settings: RunSettings,
    times: LayerTimes,
    earlier: Earlier | None,
) -> Searcher:
    return Searcher(
        graph,
        teacher_accuracy=accuracy,
        settings=settings.search,
        space=settings.space,
        surrogate=settings.surrogate,
        model=settings.model,
        objective=settings.objective,
        latency=times.candidates,
        earlier=earlier,
        seed=settings.seed,
    )


def _run(
    run: Run,
    settings: RunSettings,
    data: DataSet,
    teacher: Teacher,
    device: torch.device,
    cluster: Cluster | None,
) -> None:
    """Search and full training, from wherever the journal says the run stands."""
    events = run.events()
    searcher = _searcher(run, teacher, settings, device)
    restore(searcher, events)
    _record_start(run, settings, teacher)
    _refuse_other_teacher(run, teacher)
    save_teacher(run.path, teacher.graph, settings.space, teacher.validation_accuracy)
    targets = _targets(teacher, settings, data, device)
    if not any(event["event"] == "finalists" for event in events):
        evaluator = Evaluator(
            searcher.space,
            teacher.weights,
            data,
            targets,
            settings.evaluation,
            settings.space.inherit,
            settings.seed,
            device,
            run.trial_folder,
        )
        with Progress() as bar, ScalarLog(run.path / "tensorboard", events) as scalars:

            def record(rows: Sequence[dict[str, Any]]) -> None:
                run.append_many(rows)
                for row in rows:
                    if row.get("state") == "DONE" and "stopped_after" not in row:
                        scalars.trial(row)

            def progress(searcher: Searcher) -> None:
                best = searcher.best()
                total = settings.search.steps * settings.search.batch
                bar.update(
                    len(searcher.outcomes),
                    total,
                    max(searcher.steps, 1),
                    searcher.f(best[0]) if best else None,
                )

            _search(searcher, evaluator, settings, cluster, record, progress)
    _finish(run, settings, data, teacher, targets, searcher, device, cluster)


def _search(
    searcher: Searcher,
    evaluator: Evaluator,
    settings: RunSettings,
    cluster: Cluster | None,
    record: Recorder,
    progress: Callable[[Searcher], None],
) -> None:
    mode, workers = settings.search.mode, 1 if cluster is None else cluster.workers
    feed: Feed
    if mode == "asynchronous" or (mode == "auto" and workers > 1):
        feed = StreamingFeed(searcher, record, progress, workers=workers)
    else:
        feed = StepwiseFeed(searcher, record, progress)
    try:
        if cluster is None:
            search_loop(feed, SerialExecutor(evaluator))
            return
        from esnac.search.bundle import Bundle
        from esnac.search.tune import asha, tune_search

        epochs = settings.evaluation.epochs
        targets = {epoch: evaluator.targets.epoch(epoch) for epoch in range(epochs)}
        tune_search(
            searcher,
            feed,
            Bundle.of(evaluator, settings.space, targets),
            cluster,
            evaluator.folder,
            scheduler=asha(epochs) if settings.search.early_stopping == "asha" else None,
            retries=settings.search.retries,
        )
    finally:
        feed.close()


def _record_start(run: Run, settings: RunSettings, teacher: Teacher) -> None:
    """The journal's first lines, unless they are there."""
    spent = cost(teacher.graph)
    rows: list[dict[str, Any]] = [
        {
            "event": "run",
            "network": settings.network,
            "dataset": settings.dataset,
            "seed": settings.seed,
            "engine": settings.search.engine,
            "objective": settings.objective.kind,
            "epochs": settings.evaluation.epochs,
            "versions": versions(),
        },
        {
            "event": "teacher",
            "accuracy": teacher.accuracy,
            "validation_accuracy": teacher.validation_accuracy,
            "params": spent.params,
            "macs": spent.macs,
            "file": None if teacher.file is None else str(teacher.file),
        },
    ]
    there = {event["event"] for event in run.events()}
    run.append_many([row for row in rows if row["event"] not in there])


def _recorded_teacher(run: Run) -> dict[str, Any]:
    return next((event for event in run.events() if event["event"] == "teacher"), {})


def _recorded_file(run: Run) -> Path | None:
    """The weights that the run was started with, if a user named them."""
    file = _recorded_teacher(run).get("file")
    return None if file is None else Path(file)


def _refuse_other_teacher(run: Run, teacher: Teacher) -> None:
    before = _recorded_teacher(run)
    now = cost(teacher.graph).params, teacher.validation_accuracy
    if (before["params"], before["validation_accuracy"]) != now:
        raise RunError(
            f"{run.path} was started with another teacher: {before['params']:,} parameters and "
            f"{100 * before['validation_accuracy']:.2f} % on the validation images, against "
            f"{now[0]:,} and {100 * now[1]:.2f} % now. Pass the same --teachers or --teacher."
        )


def _targets(
    teacher: Teacher, settings: RunSettings, data: DataSet, device: torch.device
) -> TeacherTargets:
    """The teacher's answers, shared by all trials and finalists."""
    seed = derive_seed(settings.seed, "augmentation")
    return TeacherTargets(
        teacher.module, data, seed, device, precision=settings.evaluation.precision
    )


def _finish(
    run: Run,
    settings: RunSettings,
    data: DataSet,
    teacher: Teacher,
    targets: TeacherTargets,
    searcher: Searcher,
    device: torch.device,
    cluster: Cluster | None,
) -> None:
    """Full training of the finalists; those that the journal holds already are not repeated."""
    events = run.events()
    chosen = [event["trials"] for event in events if event["event"] == "finalists"]
    if not chosen:
        chosen = [[trial.number for trial in searcher.best(settings.finish.finalists)]]
        if not chosen[0]:
            raise RunError(
                f"{run.path} has no student whose evaluation went to its end. Resume its search "
                "first: --resume."
            )
        run.append("finalists", trials=chosen[0])
    done = {(event["index"], event.get("link", 0)) for event in events if event["event"] == "stage"}
    failures: list[str] = []
    training = settings.finish.training
    chain = [Link(0, "train", FullTraining(training, settings.finish.from_scratch))]
    chains: list[list[Step]] = []
    for index, number in enumerate(chosen[-1]):
        finalist = run.finalist_folder(index)
        ready = {link for i, link in done if i == index}
        for link in chain:
            if link.number in ready:
                clean(link.folder(finalist))
        chains.append(steps(index, chain, run.trial_folder(number), finalist, ready))

    def report(step: Step, result: StageResult | str) -> None:
        number, stage = chosen[-1][step.index], step.link.name
        if isinstance(result, str):  # the other finalists may still do well
            run.append("failure", index=step.index, trial=number, stage=stage, reason=result)
            failures.append(f"finalist {step.index} (trial {number}): {result}")
            return
        ratio = compression(result.params, searcher.teacher_cost.params)
        row = result.to_plain() | {
            "path": result.path.relative_to(run.path).as_posix(),
            "index": step.index,
            "trial": number,
            "ratio": ratio,
            "f": reward(ratio, result.accuracy, teacher.accuracy),
        }
        run.append("stage", **row)
        clean(result.path)

    context = StageContext(
        data, targets, device, settings.seed, 0, training, teacher_accuracy=teacher.accuracy
    )
    if cluster is None:

        @contextmanager
        def watched(step: Step) -> Iterator[StageContext]:
            title = f"finalist {step.index + 1} of {len(chosen[-1])}"
            with EpochProgress(title, training.epochs) as progress:
                yield replace(context, index=step.index, on_epoch=progress.update)

        run_here(chains, watched, report)
    else:
        from esnac.stages.remote import Workshop, run_stages

        precision = settings.evaluation.precision
        run_stages(
            chains,
            Workshop.of(context, teacher.graph, teacher.weights, precision),
            cluster,
            report,
            retries=settings.search.retries,
            together=settings.finish.workers,
            in_order=settings.search.mode == "synchronous",
        )
    if failures:
        raise TrainingError(f"{run.path}: full training failed for {'; '.join(failures)}")
    if not any(event["event"] == "end" for event in events):
        run.append("end")
