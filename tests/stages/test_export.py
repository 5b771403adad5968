from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esnac.data import DataSet
from esnac.deployment import onnx_session
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, SettingsError
from esnac.graphs import student as students
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.quantization import store
from esnac.quantization.attach import Plan, attach, calibrate
from esnac.quantization.lsq import LSQActivationSettings, LSQWeightSettings
from esnac.quantization.uniform_weight import UniformSettings
from esnac.settings import build
from esnac.stages._base import StageContext, StageResult
from esnac.stages.export import ExportSettings, ExportStage
from esnac.training import TrainingSettings, fit
from esnac.training.evaluate import accuracy

for name in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(name, reason="needs the extra onnx")


@pytest.fixture(scope="module")
def trained(bars: DataSet) -> StudentNetwork:
    from esnac.distillation.losses import make_loss

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 64, 3),
        )  # fmt: skip
        student = StudentNetwork(trace(module, (1, 8, 8)))
    settings = TrainingSettings(epochs=6, batch_size=32, learning_rate=0.05, precision="float32")
    data = bars.to("cpu")
    cpu = torch.device("cpu")
    loss = make_loss(settings)
    fit(student, data, settings, loss=loss, seed=0, augmentation_seed=0, device=cpu)
    return student.eval()


@pytest.fixture
def context(bars: DataSet, trained: StudentNetwork, device: torch.device) -> StageContext:
    targets = TeacherTargets(trained, bars, 0, torch.device("cpu"))
    return StageContext(
        bars,
        targets,
        device,
        seed=7,
        index=0,
        training=TrainingSettings(epochs=1),
        teacher_accuracy=1.0,
    )


def export(
    student: StudentNetwork, folder: Path, context: StageContext, **settings: Any
) -> StageResult:
    store.save(folder / "source", student)
    stage = ExportStage(ExportSettings(**{"batches": (1,), "images": 32} | settings))
    return stage.run(folder / "source", folder / "target", context)


def rows(result: StageResult) -> dict[str, Any]:
    return {row["runtime"]: row for row in result.details["files"]}


def test_float_and_8_bits(
    trained: StudentNetwork, bars: DataSet, tmp_path: Path, context: StageContext
) -> None:
    result = export(trained, tmp_path, context, method="onnx_int8")
    target = tmp_path / "target"
    assert (result.stage, result.path) == ("export-onnx_int8", target)
    for name in (students.ARCHITECTURE, students.WEIGHTS):
        assert (target / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    found = rows(result)
    assert list(found) == ["torch", "onnx", "onnx_int8"]
    assert found["onnx"]["path"] == "student.onnx"
    assert found["torch"]["accuracy"] == accuracy(trained, bars.to("cpu").test, bars.to("cpu"))
    assert found["onnx"]["accuracy"] == found["torch"]["accuracy"] > 0.6
    assert found["onnx"]["difference"] <= 1e-4
    assert found["onnx"]["agreement"] == 1.0
    assert result.accuracy == found["onnx_int8"]["accuracy"]
    assert abs(result.accuracy - found["torch"]["accuracy"]) <= 0.05
    assert result.bytes == (target / "student.int8.onnx").stat().st_size
    assert result.bytes == found["onnx_int8"]["bytes"]
    assert found["onnx_int8"]["seconds"].keys() == {"1"}
    assert result.details["threads"] == 1


@pytest.mark.parametrize(("bits", "method"), [(2, "onnx_int2"), (4, "onnx_int4")])
def test_a_quantised_student_keeps_its_integers(
    bits: int, method: str, trained: StudentNetwork, tmp_path: Path, context: StageContext
) -> None:
    """Weights in 2 or 4 bits, inputs in 4: the file computes what the student does."""
    import onnx

    student = StudentNetwork(trained.graph, trained.state_dict()).eval()
    conv, fc = (name for name in ("_3", "_7"))
    settings = LSQWeightSettings(bits=bits, rows="channel")
    inputs = {name: LSQActivationSettings(bits=4) for name in (conv, fc)}
    weights = {f"{name}.weight": settings for name in (conv, fc)}
    attach(student, Plan(weights, inputs))
    data = context.data.to("cpu")
    from esnac.deployment.runtime_table import inputs_of

    calibrate(student, [torch.from_numpy(inputs_of(data.train, data))])
    result = export(student, tmp_path, context, method=method)
    row = rows(result)[method]
    print(f"{method}: {row['difference']:.2g} to torch, agreement {row['agreement']:.4f}")
    assert row["agreement"] >= 0.99
    assert row["accuracy"] == pytest.approx(rows(result)["torch"]["accuracy"], abs=0.02)
    model = onnx.load(tmp_path / "target" / f"student.int{bits}.onnx")
    held = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kind = {2: onnx.TensorProto.INT2, 4: onnx.TensorProto.INT4}[bits]
    assert [held[f"{name}.weight_codes"] for name in (conv, fc)] == [kind, kind]
    assert result.bytes < rows(result)["onnx"]["bytes"]
    assert (tmp_path / "target" / store.QUANTIZATION).exists()
    with pytest.raises(EsnacError, match="is quantised already"):
        export(student, tmp_path, context, method="onnx_int8")


def test_weights_without_integers(
    trained: StudentNetwork, tmp_path: Path, context: StageContext
) -> None:
    with pytest.raises(EsnacError, match=r"no integer weights.*quantize\(lsq"):
        export(trained, tmp_path, context, method="onnx_int4")
    student = StudentNetwork(trained.graph, trained.state_dict()).eval()
    attach(student, Plan({"_3.weight": UniformSettings(bits=4, rows=64)}))
    with pytest.raises(EsnacError, match=r"'_3\.weight' has a scale per 64 values"):
        export(student, tmp_path, context, method="onnx_int4")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("MNN") is None, reason="needs the extra mnn")
def test_all(trained: StudentNetwork, tmp_path: Path, context: StageContext) -> None:
    result = export(trained, tmp_path, context, method="all")
    found = rows(result)
    assert list(found) == ["torch", "onnx", "onnx_int8", "mnn", "mnn_int8"]
    assert found["mnn"]["difference"] <= 1e-4
    for row in found.values():
        assert abs(row["accuracy"] - found["torch"]["accuracy"]) <= 0.05
    files = {path.name for path in (tmp_path / "target").iterdir()}
    assert files >= {row["path"] for row in found.values() if row["path"]}


def test_what_is_made_from_a_refused_file_is_refused_too(
    trained: StudentNetwork,
    tmp_path: Path,
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise EsnacError("MNN lacks an operator.")

    monkeypatch.setattr("esnac.stages.export.require_extra", lambda _extra: None)
    monkeypatch.setattr("esnac.deployment.mnn.convert", refuse)
    result = export(trained, tmp_path, context, method="all")
    assert list(rows(result)) == ["torch", "onnx", "onnx_int8"]
    assert result.details["refused"] == dict.fromkeys(("mnn", "mnn_int8"), "MNN lacks an operator.")
    with pytest.raises(EsnacError, match="lacks an operator"):
        export(trained, tmp_path, context, method="mnn_int8")


def test_the_same_images_serve_each_time(
    trained: StudentNetwork, tmp_path: Path, context: StageContext
) -> None:
    """Another start of the stage gives the same files."""
    once = export(trained, tmp_path, context, method="onnx_int8", images=5)
    file = once.path / "student.int8.onnx"
    before = file.read_bytes()
    export(trained, tmp_path, context, method="onnx_int8", images=5)
    assert file.read_bytes() == before
    found = onnx_session.run(
        onnx_session.open_session(file), np.zeros((3, 1, 8, 8), dtype=np.float32)
    )
    assert found.shape == (3, 3)


def test_settings_are_checked() -> None:
    assert build(ExportSettings, {"method": "mnn_int8"}).formats == ("onnx", "mnn", "mnn_int8")
    for bad, message in (
        ({"method": "tflite"}, "method must be one of onnx"),
        ({"images": 0}, "images must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"batches": []}, "batches must be one or more sizes"),
    ):
        with pytest.raises(SettingsError, match=message):
            build(ExportSettings, bad)
