from __future__ import annotations

from esnac.report.details import details_text


def test_figures_on_one_line_and_tables_below() -> None:
    rows = [{"file": "a.onnx", "bytes": 120}, {"file": "b", "accuracy": 0.98765432}]
    details = {"sparsity": 0.79600001, "fired": True, "files": rows, "layers": [], "note": "dense"}
    assert details_text(details).splitlines() == [
        "sparsity=0.796 fired=true layers=[] note=dense",
        "files",
        "file    bytes  accuracy",
        "a.onnx    120         -",
        "b           -  0.987654",
    ]


def test_nothing_told() -> None:
    assert details_text({}) == ""


def test_groups_are_named_in_front() -> None:
    details = {"bytes": {"packed": 7, "tensors": [{"name": "a"}]}}
    assert details_text(details).splitlines() == ["bytes.packed=7", "bytes.tensors", "name", "a"]
