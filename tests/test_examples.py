"""The examples run; with a small budget here."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_own_network(root: Path, capsys) -> None:
    main = runpy.run_path(str(root / "examples" / "own_network.py"))["main"]
    result = main(
        steps=60,
        search={"steps": 1, "batch": 2, "pool": 20},
        surrogate={"hidden": 4, "steps": 2},
        evaluation={"epochs": 1},
        finish={"finalists": 1, "training": {"epochs": 1}},
    )
    assert "student:" in capsys.readouterr().out
    assert (result.path / "finalists" / "0" / "architecture.json").is_file()
