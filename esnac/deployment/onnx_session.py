"""Running ONNX files by onnxruntime, on the CPU and without its messages."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from esnac.deployment.extras import require_extra
from esnac.errors import EsnacError

#: Names of the input and the output of every file that esnac writes.
INPUT, OUTPUT = "input", "logits"

#: Messages of onnxruntime from this level on are shown: 3 is errors.
_SEVERITY = 3

#: Images in a batch when a whole set is run.
_BATCH = 250


def open_session(path: Path, threads: int = 1, optimised: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of the file; `optimised` gets the graph that it runs.

    Raises EsnacError when the extra is missing or the file cannot be run.
    """
    require_extra("onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's own kinds share no base but this
        raise EsnacError(f"onnxruntime cannot run {path}: {str(error).splitlines()[0]}") from None


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """N x classes logits of N normalised images (N x C x H x W, float32)."""
    parts = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    found: np.ndarray = np.concatenate([session.run(None, {INPUT: part})[0] for part in parts])
    return found


def operators(path: Path) -> Counter[str]:
    """How often each operator occurs in the file."""
    require_extra("onnx")
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def optimised_operators(path: Path) -> Counter[str]:
    """How often each operator occurs in the graph that onnxruntime makes of the file."""
    with tempfile.TemporaryDirectory(prefix="esnac-onnx-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        open_session(path, optimised=optimised)
        return operators(optimised)
