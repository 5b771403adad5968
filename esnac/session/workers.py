"""Whether a run can be done where it is wanted, and the workers for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from esnac.cluster import Cluster, ClusterSettings, connected
from esnac.errors import SettingsError
from esnac.search.settings import RunSettings


def check_workers(
    settings: RunSettings, cluster: ClusterSettings | None, *, searches: bool = True
) -> None:
    """Raises SettingsError for what cannot be done where `cluster` says.

    `searches`: whether a search is to come, or only the finalists' stages.
    """
    count, search = settings.finish.workers, settings.search
    needs = {f"finish.workers = {count}": count > 1}
    if searches:
        needs["search.mode = 'asynchronous'"] = search.mode == "asynchronous"
        needs["search.early_stopping = 'asha'"] = search.early_stopping == "asha"
    if cluster is None or cluster.executor == "serial":
        for what, needed in needs.items():
            if needed:
                raise SettingsError(f"{what} needs workers: add --executor ray.")
    elif searches and "latency" in settings.objective.needed and cluster.address is None:
        raise SettingsError(
            "Latency cannot be measured while workers use the machine: leave --workers out, or "
            "join a cluster with --address."
        )


@contextmanager
def workers(settings: RunSettings, cluster: ClusterSettings | None) -> Iterator[Cluster | None]:
    """The cluster that is asked for; None for this process alone."""
    if cluster is None or cluster.executor == "serial":
        yield None
        return
    with connected(cluster) as joined:
        if settings.finish.workers > joined.workers:
            raise SettingsError(
                f"finish.workers = {settings.finish.workers}, but the cluster has "
                f"{joined.workers} at a time. Set fewer, or add --workers and nodes."
            )
        yield joined
