"""The search loop of one process: takes trials from a feed, has the executor evaluate them."""

from __future__ import annotations

from esnac.executors import Executor
from esnac.search.feed import Feed
from esnac.search.trial import Outcome, Trial


def search_loop(feed: Feed, executor: Executor[Trial, Outcome]) -> None:
    """Runs the search to its last trial; those that a resumed search waits for come first."""
    while True:
        trial = feed.next() if executor.free else None
        if trial is not None:
            executor.submit(trial)
        elif feed.finished:
            return
        else:
            for job, outcome in executor.collect():
                feed.take(job, outcome)
