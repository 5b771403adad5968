"""A score as rows of a table, and as CSV."""

from __future__ import annotations

import csv
import io

from esnac.deployment.micronet.score import Row, Score

HEADER: tuple[str, ...] = ("layer", "kind", "output", "weights", "sparsity", "bits", "reads")
HEADER += ("storage", "multiplies", "additions", "score")

CSV_HEADER: tuple[str, ...] = ("layer", "kind", "output", "weights", "nonzeros", "weight_bits")
CSV_HEADER += ("input_bits", "storage", "multiplies", "additions", "operations", "score")


def table_rows(score: Score) -> list[list[str]]:
    """Rows under HEADER: the layers that cost something, then their sum.

    `reads`: bits of what a layer reads; `storage` in 32-bit parameters, operations of 32 bits.
    """
    rows = [_cells(row, score) for row in score.rows if row.storage or row.operations]
    total = [number(score.storage), number(score.multiplies), number(score.additions)]
    return [*rows, ["total", "", "", "", "", "", "", *total, f"{score.value:.6g}"]]


def to_csv(score: Score) -> str:
    """All layers, with full numbers; the sum is not a row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in score.rows:
        bits = "" if row.weight_bits is None else row.weight_bits
        shape = "x".join(map(str, row.shape))
        cost = (row.storage, row.multiplies, row.additions, row.operations, _share(row, score))
        writer.writerow(
            (row.layer, row.kind, shape, row.weights, row.nonzeros, bits, row.input_bits, *cost)
        )
    return buffer.getvalue()


def number(value: float) -> str:
    """`1,844` or `39.375`."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def _cells(row: Row, score: Score) -> list[str]:
    sparsity = f"{1 - row.nonzeros / row.weights:.3f}" if row.nonzeros < row.weights else "-"
    return [
        row.layer,
        row.kind,
        "x".join(map(str, row.shape)),
        str(row.weights or "-"),
        sparsity,
        "-" if row.weight_bits is None else f"{row.weight_bits:g}",
        f"{row.input_bits:g}",
        number(row.storage),
        number(row.multiplies),
        number(row.additions),
        f"{_share(row, score):.3g}",
    ]


def _share(row: Row, score: Score) -> float:
    return score.task.score(row.storage, row.operations)
