from __future__ import annotations

from typing import Any

import pytest

from esnac.cluster import ClusterSettings
from esnac.errors import SettingsError
from esnac.search.settings import RunSettings
from esnac.session.workers import check_workers, workers
from esnac.settings import build

RAY = ClusterSettings("ray", workers=2)
JOINED = ClusterSettings("ray", address="auto")


def settings(**tables: Any) -> RunSettings:
    return build(RunSettings, {"network": "resnet20", "dataset": "digits", **tables})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"finish": {"workers": 2}}, "finish.workers = 2 needs workers"),
        ({"search": {"mode": "asynchronous"}}, "search.mode = 'asynchronous' needs workers"),
        ({"search": {"early_stopping": "asha"}}, "search.early_stopping = 'asha' needs workers"),
    ],
)
def test_what_needs_workers(tables: dict[str, Any], message: str) -> None:
    for cluster in (None, ClusterSettings()):
        with pytest.raises(SettingsError, match=message):
            check_workers(settings(**tables), cluster)
    check_workers(settings(**tables), RAY)
    if "search" in tables:  # that is over when finalists are finished
        check_workers(settings(**tables), None, searches=False)


@pytest.mark.parametrize(
    "objective", [{"max_latency": 3.0}, {"kind": "pareto", "measures": ["accuracy", "latency"]}]
)
def test_latency_is_not_measured_beside_workers(objective: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="Latency cannot be measured while workers"):
        check_workers(settings(objective=objective), RAY)
    check_workers(settings(objective=objective), None)
    check_workers(settings(objective=objective), JOINED)
    check_workers(settings(objective=objective), RAY, searches=False)


def test_here_is_no_cluster() -> None:
    for cluster in (None, ClusterSettings()):
        with workers(settings(), cluster) as joined:
            assert joined is None
