"""Files for MNN, a runtime for phones: float32, and 8 bits by its own quantiser.

All of it happens in a process of its own (`_mnn_process`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esnac import files
from esnac.deployment.extras import require_extra
from esnac.errors import EsnacError

#: Seconds after which a tool counts as hung.
_PATIENCE = 600

#: MNN's methods for the ranges of activations: KL ends the process (3.6.1), ADMM takes minutes.
_RANGES = "EMA"

#: Largest error of the 8-bit logits of the training images, in units of their norm. Measured:
#: 0.004 to 0.05 where it works, 1.07 for ResNet-20, which becomes nearly constant.
_FARTHEST = 0.5

#: Images that MNN's quantiser takes at a time.
_BATCH = 8


def convert(source: Path, target: Path) -> None:
    """Writes `target`, the float32 ONNX file `source` for MNN. Raises EsnacError."""
    require_extra("mnn")

    def tool(place: Path) -> None:
        paths = ["--modelFile", str(source), "--MNNModel", str(place)]
        _work({"task": "tool", "name": "mnnconvert"}, ["-f", "ONNX", *paths, "--bizCode", "esnac"])
        _require(place, f"MNN cannot convert {source}")

    files.write(target, tool, parents=True)


def quantize(
    source: Path,
    target: Path,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Writes `target`, the float32 MNN file `source` in 8 bits.

    `images`: training images, N x C x H x W, uint8, with 1 or 3 channels; `mean` and `std` per
    channel in units of the full range. Raises EsnacError.
    """
    require_extra("mnn")
    count, channels, height, width = images.shape
    if channels not in (1, 3) or not count:
        raise EsnacError(
            f"MNN's quantiser takes images of 1 or 3 channels; got {count} of {channels}. "
            "Export to onnx_int8 instead."
        )
    with tempfile.TemporaryDirectory(prefix="esnac-mnn-") as folder:
        _write_images(Path(folder) / "images", images)
        settings = {
            "format": "RGB" if channels == 3 else "GRAY",
            "mean": [255.0 * value for value in mean],
            "normal": [1 / (255.0 * value) for value in std],
            "width": width,
            "height": height,
            "path": f"{folder}/images/",
            "used_image_num": count,
            "batch_size": min(_BATCH, count),
            "feature_quantize_method": _RANGES,
            "weight_quantize_method": "MAX_ABS",
        }
        config = Path(folder) / "settings.json"
        config.write_text(json.dumps(settings), encoding="utf-8")

        def tool(place: Path) -> None:
            paths = [str(source), str(place), str(config)]
            _work({"task": "tool", "name": "mnnquant"}, paths)
            _require(place, f"MNN cannot quantise {source}")

        files.write(target, tool, parents=True)
    _require_alike(source, target, images, mean, std)


def run(
    path: Path, inputs: np.ndarray, threads: int = 1, batches: Sequence[int] = ()
) -> tuple[np.ndarray, dict[int, float]]:
    """N x classes logits of normalised images, and seconds of one pass for each of `batches`.

    The seconds are the shortest of many passes. Raises EsnacError.
    """
    require_extra("mnn")
    with tempfile.TemporaryDirectory(prefix="esnac-mnn-") as folder:
        given, found = Path(folder) / "inputs.npy", Path(folder) / "outputs.npz"
        np.save(given, inputs)
        job = {"task": "run", "model": str(path), "inputs": str(given), "outputs": str(found)}
        _work({**job, "threads": threads, "batches": list(batches)})
        with np.load(found, allow_pickle=False) as outputs:
            seconds = dict(zip(batches, outputs["seconds"].tolist(), strict=True))
            return outputs["logits"], seconds


def _work(job: dict[str, Any], arguments: Sequence[str] | None = None) -> None:
    """Does the job in a process of its own. Raises EsnacError with its last line when it fails."""
    if arguments is not None:
        job = {**job, "arguments": list(arguments)}
    with tempfile.TemporaryDirectory(prefix="esnac-mnn-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "esnac.deployment._mnn_process", str(file)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise EsnacError(f"MNN did not finish within {_PATIENCE} seconds.") from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no message"
        raise EsnacError(f"MNN failed (exit code {done.returncode}): {last[:300]}")


def _require(path: Path, problem: str) -> None:
    """The tools end well without a file when they meet an operator that they lack."""
    if not path.is_file() or not path.stat().st_size:
        raise EsnacError(f"{problem}: it wrote no file. Export to onnx instead.")


def _require_alike(
    source: Path,
    target: Path,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """MNN 3.6.1 quantises some networks (ResNet-20) to another function, without a word."""
    shift, spread = np.array([mean, std], dtype=np.float32).reshape(2, 1, -1, 1, 1)
    inputs = (images.astype(np.float32) / 255 - shift) / spread
    exact, coarse = (run(path, inputs)[0] for path in (source, target))
    error = float(np.linalg.norm(coarse - exact)) / max(float(np.linalg.norm(exact)), 1e-12)
    if not error <= _FARTHEST:
        target.unlink()
        raise EsnacError(
            f"MNN's quantiser does not keep this network: its logits are off by {error:.2g} of "
            "their size. Export to mnn or onnx_int8 instead."
        )


def _write_images(folder: Path, images: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir()
    for number, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number:05d}.png")
