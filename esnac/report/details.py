"""What a stage tells beside its accuracy and size, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esnac.report.tables import NOTHING, columns


def details_text(details: Mapping[str, Any]) -> str:
    """One line for all single figures, then each table (a list of rows with names).

    Figures stand as the stage gave them: accuracies are fractions. Those of a group have its name
    in front (`bytes.packed`). "" when there are none.
    """
    details = dict(_ungrouped(details))
    tables = {key: value for key, value in details.items() if _is_table(value)}
    figures = [f"{key}={_cell(value)}" for key, value in details.items() if key not in tables]
    parts = [" ".join(figures)] if figures else []
    parts += [f"{key}\n{_table(rows)}" for key, rows in tables.items()]
    return "\n".join(parts)


def _ungrouped(details: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in details.items():
        if isinstance(value, Mapping):
            yield from _ungrouped(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = list(dict.fromkeys(key for row in rows for key in row))
    return columns(header, [[_cell(row.get(key)) for key in header] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
