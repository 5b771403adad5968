from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from esnac.deployment.extras import EXTRAS, require_extra
from esnac.deployment.onnx_export import export
from esnac.errors import EsnacError


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_missing_is_named_with_its_extra(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = EXTRAS[extra][0]
    monkeypatch.setitem(sys.modules, first, None)
    with pytest.raises(EsnacError, match=rf"needs {first}.*esnac\[{extra}\]"):
        require_extra(extra)


def test_an_export_without_the_extra_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EsnacError, match=r"onnxscript.*esnac\[onnx\]"):
        export(nn.Conv2d(1, 1, 1), tmp_path / "a.onnx", (1, 4, 4))
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_comes_with_the_modules() -> None:
    import subprocess

    code = (
        "import sys, esnac.deployment.onnx_export, esnac.deployment.onnx_int8, "
        "esnac.deployment.onnx_weights, esnac.deployment.mnn, esnac.deployment.runtime_table\n"
        "assert not {'onnx', 'onnxruntime', 'onnxscript', 'MNN', 'ml_dtypes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
