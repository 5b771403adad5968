"""The stage `export`: files for other runtimes beside the student, measured where they will run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from esnac.data import DataSet
from esnac.data.sets import Images
from esnac.deployment import mnn, onnx_export, onnx_int8, onnx_weights, runtime_table
from esnac.deployment.extras import require_extra
from esnac.deployment.stopwatch import device_name
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.graphs.cost import cost
from esnac.graphs.network import StudentNetwork
from esnac.quantization import store
from esnac.quantization.attach import activation_quantizers, is_quantized, weight_codes
from esnac.runtime import torch_generator
from esnac.settings import require
from esnac.stages._base import StageContext, StageResult
from esnac.stages.integer_weights import integer_weight

#: A format, and what its file is made from (None: from the student).
SOURCES: dict[str, str | None] = {
    "onnx": None,
    "onnx_int8": "onnx",
    "onnx_int4": "onnx",
    "onnx_int2": "onnx",
    "mnn": "onnx",
    "mnn_int8": "mnn",
}

FILES = {
    "onnx": "student.onnx",
    "onnx_int8": "student.int8.onnx",
    "onnx_int4": "student.int4.onnx",
    "onnx_int2": "student.int2.onnx",
    "mnn": "student.mnn",
    "mnn_int8": "student.int8.mnn",
}


@dataclass(frozen=True)
class ExportSettings:
    """`onnx_int4` and `onnx_int2` pack the integer weights of a quantised student, each in the
    fewest bits from 4 or 2 that hold its levels; `all`: onnx, onnx_int8, mnn and mnn_int8.
    """

    method: Literal["onnx", "onnx_int8", "onnx_int4", "onnx_int2", "mnn", "mnn_int8", "all"] = (
        "onnx"
    )
    #: Training images for the ranges of activations; 32 were enough on digits (measured).
    images: int = 128
    #: Of each runtime, and the batches that are timed.
    threads: int = 1
    batches: tuple[int, ...] = (1, 64)

    def __post_init__(self) -> None:
        require(self.images >= 1, "images", "at least 1", self.images)
        require(self.threads >= 1, "threads", "at least 1", self.threads)
        fits = bool(self.batches) and min(self.batches) >= 1
        require(fits, "batches", "one or more sizes from 1", self.batches)

    @property
    def formats(self) -> tuple[str, ...]:
        """What is written, in order: each format after the one it is made from."""
        if self.method == "all":
            return "onnx", "onnx_int8", "mnn", "mnn_int8"
        chain: list[str] = []
        method: str | None = self.method
        while method is not None:
            chain.insert(0, method)
            method = SOURCES[method]
        return tuple(chain)


@dataclass(frozen=True)
class ExportStage:
    """Copies the student unchanged and writes the files beside it.

    The result's accuracies and bytes are those of the file that was asked for (of `all`: the 8-bit
    ONNX file), in its runtime; `details` has the figures of every file and of torch.
    """

    settings: ExportSettings

    @property
    def name(self) -> str:
        return f"export-{self.settings.method}"

    @property
    def needs_float(self) -> str | None:
        """A second quantiser on top of trained ones would undo what was trained."""
        own = [name for name in ("onnx_int8", "mnn_int8") if name in self.settings.formats]
        if not own:
            return None
        return (
            f"{own[0]} quantises a float student: export an earlier one. This one takes method "
            "onnx or, where its levels are integers times a scale, onnx_int4 or onnx_int2."
        )

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        return context.group.from_first(lambda: self._run(source, target, context))

    def _run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        start = time.perf_counter()
        formats = self.settings.formats
        require_extra("onnx")
        if "mnn" in formats:
            require_extra("mnn")
        student = store.load(source)
        if self.needs_float and is_quantized(student):
            raise EsnacError(f"The student in {source} is quantised already. {self.needs_float}")
        data = context.data.to("cpu")
        if target.resolve() != source.resolve():
            students.write_files(target, students.read_files(source))
        calibration = self._calibration(data, context)
        paths = {name: target / FILES[name] for name in formats}
        refused: dict[str, str] = {}
        for name in formats:
            made_from = SOURCES[name]
            try:
                if made_from in refused:
                    raise EsnacError(refused[made_from])
                _WRITERS[name](student, paths, calibration, data)
            except EsnacError as error:
                if self.settings.method != "all" or name in _NEEDED:
                    raise
                refused[name] = str(error)
                del paths[name]
        return self._result(student, paths, data, refused, start)

    def _calibration(self, data: DataSet, context: StageContext) -> Images:
        generator = torch_generator(context.seed, "calibration", context.index)
        order = torch.randperm(len(data.train), generator=generator)
        return data.train.subset(order[: self.settings.images])

    def _result(
        self,
        student: StudentNetwork,
        paths: Mapping[str, Path],
        data: DataSet,
        refused: Mapping[str, str],
        start: float,
    ) -> StageResult:
        threads, batches = self.settings.threads, self.settings.batches
        rows = runtime_table.table(student, paths, data, threads=threads, batches=batches)
        wanted = "onnx_int8" if self.settings.method == "all" else self.settings.method
        row = next(row for row in rows if row.runtime == wanted)
        validation = runtime_table.inputs_of(data.validation, data)
        found = runtime_table.logits(paths[wanted], validation, threads)
        spent = cost(student.graph)
        return StageResult(
            stage=self.name,
            path=paths[wanted].parent,
            accuracy=row.accuracy,
            validation_accuracy=runtime_table.fraction_right(found, data.validation),
            params=spent.params,
            macs=spent.macs,
            seconds=time.perf_counter() - start,
            bytes=paths[wanted].stat().st_size,
            details={
                "processor": device_name(torch.device("cpu")),
                "threads": threads,
                "images": self.settings.images,
                "files": [_by_name(row).to_plain() for row in rows],
                **({"refused": dict(refused)} if refused else {}),
            },
        )


def _by_name(row: runtime_table.Row) -> runtime_table.Row:
    """The path within the student's folder, which may move."""
    return row if row.path is None else replace(row, path=Path(row.path).name)


Writer = Callable[[StudentNetwork, Mapping[str, Path], Images, DataSet], object]


def _onnx(
    student: StudentNetwork, paths: Mapping[str, Path], images: Images, data: DataSet
) -> None:
    # At the edge of a rounding, the last bit of a float decides between two levels.
    tolerance = None if activation_quantizers(student) else onnx_export.TOLERANCE
    examples = torch.from_numpy(runtime_table.inputs_of(images, data)[:32])
    onnx_export.export(
        student, paths["onnx"], data.input_shape, examples=examples, tolerance=tolerance
    )


def _onnx_int8(
    student: StudentNetwork, paths: Mapping[str, Path], images: Images, data: DataSet
) -> None:
    inputs = runtime_table.inputs_of(images, data)
    onnx_int8.quantize(paths["onnx"], paths["onnx_int8"], inputs)


def _onnx_packed(
    bits: int,
    student: StudentNetwork,
    paths: Mapping[str, Path],
    images: Images,
    data: DataSet,
) -> None:
    weights = {
        name: integer_weight(name, codes, bits) for name, codes in weight_codes(student).items()
    }
    if not weights:
        raise EsnacError(
            "The student has no integer weights to pack. Put a stage before this one, such as "
            "quantize(lsq, weights=4), or export with method onnx_int8."
        )
    onnx_weights.pack(paths["onnx"], paths[f"onnx_int{bits}"], weights)


def _mnn(student: StudentNetwork, paths: Mapping[str, Path], images: Images, data: DataSet) -> None:
    mnn.convert(paths["onnx"], paths["mnn"])


def _mnn_int8(
    student: StudentNetwork, paths: Mapping[str, Path], images: Images, data: DataSet
) -> None:
    (pixels,) = images.batches([torch.arange(len(images))])
    mnn.quantize(paths["mnn"], paths["mnn_int8"], pixels.numpy(), data.mean, data.std)


#: Of "all", what the other files are made of or the stage reports.
_NEEDED = ("onnx", "onnx_int8")

_WRITERS: dict[str, Writer] = {
    "onnx": _onnx,
    "onnx_int8": _onnx_int8,
    "onnx_int4": partial(_onnx_packed, 4),
    "onnx_int2": partial(_onnx_packed, 2),
    "mnn": _mnn,
    "mnn_int8": _mnn_int8,
}
