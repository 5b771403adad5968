from __future__ import annotations

import csv
import io

import pytest

from esnac.deployment.micronet import Description, score, task
from esnac.deployment.micronet.table import CSV_HEADER, HEADER, number, table_rows, to_csv
from esnac.graphs.arch_graph import ArchGraph


def test_csv_holds_full_numbers(example: ArchGraph) -> None:
    (conv,) = [layer.name for layer in example.layers if layer.kind == "conv"]
    found = score(example, task("cifar100"), Description(nonzeros={f"{conv}.weight": 36}))
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert tuple(rows[0]) == CSV_HEADER
    assert [row["layer"] for row in rows] == [layer.name for layer in example.layers]
    assert (rows[0]["output"], rows[0]["nonzeros"], rows[0]["storage"]) == ("4x8x8", "36", "43.375")
    for key in ("storage", "multiplies", "additions", "operations"):
        assert sum(float(row[key]) for row in rows) == getattr(found, key)
    assert sum(float(row["score"]) for row in rows) == pytest.approx(found.value, rel=1e-12)


def test_table_leaves_out_what_costs_nothing_and_ends_with_the_sum(example: ArchGraph) -> None:
    rows = table_rows(score(example, task("cifar100"), Description(default=4)))
    assert all(len(row) == len(HEADER) for row in rows)
    assert [row[1] for row in rows] == ["conv", "relu", "adaptive_avg_pool", "linear", ""]
    assert rows[0][3:] == ["108", "-", "4", "4", "14", "864", "6,912", "1.12e-06"]
    assert rows[-1][0] == "total"
    assert rows[-1][-4:-1] == ["20.250", "901.500", "7,204"]


def test_numbers() -> None:
    assert [number(v) for v in (0, 1844.0, 39.375, 1e9)] == [
        "0",
        "1,844",
        "39.375",
        "1,000,000,000",
    ]
