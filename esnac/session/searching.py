"""The search of a run, from wherever its journal says it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from esnac.deployment.latency import LayerTimes
from esnac.errors import RunError
from esnac.executors import SerialExecutor
from esnac.graphs.arch_graph import ArchGraph
from esnac.report.progress import Progress
from esnac.report.tensorboard import ScalarLog
from esnac.search.earlier import EARLIER, Earlier, save_teacher
from esnac.search.evaluation import Evaluator
from esnac.search.feed import Feed, Recorder, StepwiseFeed, StreamingFeed, restore
from esnac.search.loop import search_loop
from esnac.search.searcher import Searcher
from esnac.search.settings import RunSettings
from esnac.session._base import Session
from esnac.session.records import finalists, record_start


def check_goal(
    graph: ArchGraph, settings: RunSettings, device: torch.device, earlier: Earlier | None
) -> None:
    """Raises SettingsError for a goal that cannot be met or an engine that cannot start warm."""
    _searcher(graph, 1.0, settings, LayerTimes(device), earlier)


def restored(session: Session) -> Searcher:
    """The searcher with all that the journal knows."""
    run, teacher = session.run, session.teacher
    earlier = run.path / EARLIER
    times = LayerTimes(session.device, cache=run.path / "latency.json")
    known = Earlier.load(earlier) if earlier.exists() else None
    searcher = _searcher(teacher.graph, teacher.validation_accuracy, session.settings, times, known)
    restore(searcher, run.events())
    return searcher


def search(session: Session) -> None:
    """Searches and chooses the finalists; does nothing where they are chosen."""
    run, settings, teacher = session.run, session.settings, session.teacher
    searcher = restored(session)
    record_start(session)
    if finalists(run) is not None:
        return
    save_teacher(run.path, teacher.graph, settings.space, teacher.validation_accuracy)
    with Progress() as bar, ScalarLog(run.path / "tensorboard", run.events()) as scalars:

        def record(rows: Sequence[dict[str, Any]]) -> None:
            run.append_many(rows)
            for row in rows:
                if row.get("state") == "DONE" and "stopped_after" not in row:
                    scalars.trial(row)

        def progress(searcher: Searcher) -> None:
            best = searcher.best()
            total = settings.search.steps * settings.search.batch
            f = searcher.f(best[0]) if best else None
            bar.update(len(searcher.outcomes), total, max(searcher.steps, 1), f)

        _search(session, searcher, record, progress)
    choose(session, searcher)


def choose(session: Session, searcher: Searcher) -> None:
    """Records the best students so far as finalists. Raises RunError when there is none."""
    best = searcher.best(session.settings.finish.finalists)
    if not best:
        raise RunError(
            f"{session.run.path} has no student within its limits whose evaluation went to its "
            "end. Resume its search first: --resume."
        )
    session.run.append("finalists", trials=[trial.number for trial in best])


def _searcher(
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


def _search(
    session: Session,
    searcher: Searcher,
    record: Recorder,
    progress: Callable[[Searcher], None],
) -> None:
    settings, cluster = session.settings, session.cluster
    evaluator = Evaluator(
        searcher.space,
        session.teacher.weights,
        session.data,
        session.targets,
        settings.evaluation,
        settings.space.inherit,
        settings.seed,
        session.device,
        session.run.trial_folder,
    )
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
        distilled = epochs if settings.evaluation.distills else 0
        targets = {epoch: evaluator.targets.epoch(epoch) for epoch in range(distilled)}
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
