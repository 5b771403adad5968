from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esnac.data import DataSet
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, SettingsError
from esnac.graphs.masks import effective_weights
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.quantization import packed, store
from esnac.quantization.attach import masters
from esnac.runtime import derive_seed
from esnac.settings import build
from esnac.stages import STAGES, calibration
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.full_training import FullTraining
from esnac.stages.quantize import QuantizeSettings, QuantizeStage, _Work
from esnac.training import EpochRecord, TrainingSettings, accuracy, fit

SEED = 7
TRAINING = TrainingSettings(
    epochs=4,
    batch_size=32,
    learning_rate=0.02,
    schedule="cosine",
    precision="float32",
    distillation="soft_targets",
)


@pytest.fixture(scope="module")
def trained(bars: DataSet, device: torch.device) -> StudentNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * 16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3),
        )  # fmt: skip
        student = StudentNetwork(trace(module, (1, 8, 8))).to(device)
    settings = dataclasses.replace(TRAINING, distillation="none", learning_rate=0.1, epochs=12)
    loss = make_loss(settings)
    fit(student, bars, settings, loss=loss, seed=0, augmentation_seed=0, device=device)
    return student


@pytest.fixture
def source(tmp_path: Path, trained: StudentNetwork) -> Path:
    store.save(tmp_path / "source", trained)
    return tmp_path / "source"


@pytest.fixture
def context(bars: DataSet, device: torch.device, trained: StudentNetwork) -> StageContext:
    targets = TeacherTargets(trained, bars, derive_seed(SEED, "augmentation"), device)
    return StageContext(bars, targets, device, SEED, 0, training=TRAINING, teacher_accuracy=1.0)


def runs(result: StageResult) -> dict[str, float]:
    return {row["run"]: row["accuracy"] for row in result.details["accuracy"]}


ALL: list[dict[str, Any]] = [
    {"method": "lsq", "weights": 2, "activations": 4},
    {"method": "dorefa", "weights": 4, "activations": 8},
    {"method": "pact", "weights": 4, "activations": 4},
    {"method": "qd", "weights": 2.585},
    {"method": "dq", "weights": 2, "ends": None},
    {"method": "post", "weights": 4, "activations": 8},
]


@pytest.mark.parametrize("values", ALL, ids=lambda values: str(values["method"]))
def test_the_figures_are_those_of_the_files(
    values: dict[str, Any], source: Path, tmp_path: Path, context: StageContext, bars: DataSet
) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    records: list[EpochRecord] = []
    watched = dataclasses.replace(context, on_epoch=records.append)
    target = tmp_path / "target"
    settings, stage = STAGES["quantize"].load()
    result = stage(build(settings, values)).run(source, target, watched)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    # What the epochs said, what the folder says and what the packed file says are one figure.
    folder, file = store.load(target), packed.read(target / store.PACKED)
    for student in (folder, file):
        student.to(context.device)
        assert accuracy(student, bars.test, bars) == result.accuracy
        assert accuracy(student, bars.validation, bars) == result.validation_accuracy
    if values["method"] == "post":
        assert not records
    else:
        assert len(records) == TRAINING.epochs
        assert max(record.accuracy for record in records) == result.validation_accuracy
    assert result.bytes == (target / store.PACKED).stat().st_size
    assert result.bytes == result.details["bytes"]["packed"]
    table = runs(result)
    assert list(table)[:3] == ["float", "rounded", "rounded, recalibrated"]
    assert table[values["method"]] == result.accuracy
    other = {"dq": "qd", "post": None}.get(values["method"], values["method"])
    assert other is None or f"{other}, labels alone" in table
    print(values, {run: round(found, 3) for run, found in table.items()}, result.bytes)
    assert result.accuracy > 0.6, "three classes: a guess is right once in three"


def test_calibration_images_are_made_once(
    source: Path, tmp_path: Path, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For rounding, ranges, statistics and the last look at the quantisers."""
    made: list[str] = []
    honest = calibration.batches

    def counted(context: StageContext, purpose: str) -> Any:
        made.append(purpose)
        return honest(context, purpose)

    monkeypatch.setattr(calibration, "batches", counted)
    QuantizeStage(QuantizeSettings("post", activations=8)).run(source, tmp_path / "target", context)
    assert made == ["calibration"]


def test_pruned_weights_stay_zero(source: Path, tmp_path: Path, context: StageContext) -> None:
    pruned = store.load(source)
    weights = {n: w for n, w in pruned.named_parameters() if w.dim() > 1}
    name = list(weights)[1]
    with torch.no_grad():
        weights[name][:, ::2] = 0
    store.save(tmp_path / "pruned", pruned)
    settings = QuantizeSettings("lsq", weights=4, without_teacher=False)
    QuantizeStage(settings).run(tmp_path / "pruned", tmp_path / "target", context)
    for student in (
        store.load(tmp_path / "target"),
        packed.read(tmp_path / "target/student.packed"),
    ):
        found = effective_weights(student)[name]
        assert (found[:, ::2] == 0).all()
        assert (found[:, 1::2] != 0).any()


@pytest.mark.parametrize("method", ["lsq", "qd", "dq"])
def test_an_interrupted_stage_goes_on_to_the_same_bits(
    method: str, source: Path, tmp_path: Path, context: StageContext
) -> None:
    stage = QuantizeStage(QuantizeSettings(method, weights=2, activations=4))  # type: ignore[arg-type]
    whole = stage.run(source, tmp_path / "whole", context)
    epochs: list[int] = []

    def interrupt(record: EpochRecord) -> None:
        epochs.append(record.epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    watched = dataclasses.replace(context, on_epoch=interrupt)
    with pytest.raises(KeyboardInterrupt):
        stage.run(source, tmp_path / "broken", watched)
    assert not (tmp_path / "broken" / store.PACKED).exists()
    resumed = stage.run(source, tmp_path / "broken", watched)
    assert epochs == [0, 1, 2, 3], "no epoch twice"
    assert runs(resumed) == runs(whole)
    one, other = (masters(store.load(r.path)) for r in (whole, resumed))
    if context.device.type == "cpu":  # a GPU sums in another order
        assert all(torch.equal(one[name], other[name]) for name in one)
        names = (store.PACKED, "weights.safetensors")
        assert all((whole.path / n).read_bytes() == (resumed.path / n).read_bytes() for n in names)


def test_trained_points_leave_the_weights(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    stage = QuantizeStage(QuantizeSettings("dq", weights=2, without_teacher=False))
    result = stage.run(source, tmp_path / "target", context)
    before = effective_weights(store.load(source))
    for name, master in masters(store.load(result.path)).items():
        assert torch.equal(master, before[name])
    assert "qd, labels alone" not in runs(result)


@pytest.mark.parametrize("method", ["lsq", "qd", "dq"])
def test_bits_by_gradients_are_no_more(
    method: str, source: Path, tmp_path: Path, context: StageContext
) -> None:
    settings = QuantizeSettings(
        method,  # type: ignore[arg-type]
        weights=3,
        ends=3,
        epochs=1,
        without_teacher=False,
        by_gradients=True,
    )
    result = QuantizeStage(settings).run(source, tmp_path / "target", context)
    rows = [row for row in result.details["bytes"]["tensors"] if row["levels"]]
    assert len({row["levels"] for row in rows}) > 1
    if method == "dq":
        assert sum(row["levels"] for row in rows) == 8 * len(rows)
    else:
        whole = sum(row["fixed"] - 1 for row in rows)  # a byte of each may be begun only
        assert 8 * whole <= 3 * sum(row["numel"] for row in rows)


def test_a_quantised_student_is_not_quantised_again(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    stage = QuantizeStage(QuantizeSettings("post", weights=4))
    stage.run(source, tmp_path / "once", context)
    with pytest.raises(EsnacError, match="quantised already"):
        stage.run(tmp_path / "once", tmp_path / "twice", context)
    assert not (tmp_path / "twice" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "lsqq"}, "Did you mean 'lsq'"),
        ({"weights": 0}, "1 to 8"),
        ({"weights": 33}, "1 to 8"),
        ({"activations": 9}, "1 to 8"),
        ({"weights": 2.5}, "weights must be a whole number of bits with lsq"),
        ({"method": "qd", "bucket": 0}, "bucket"),
        ({"weights": 1}, "from 2 to 8; got 1"),
        ({"overrides": ["conv=1/4"]}, "from 2 to 8; got 1"),
        ({"bucket": 64}, "bucket has no effect with method 'lsq'"),
        ({"method": "post", "epochs": 2}, "epochs has no effect with method 'post'"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"bits": 4}, "unknown key 'bits'"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(QuantizeSettings, values)


def test_an_override_of_no_layer(source: Path, tmp_path: Path, context: StageContext) -> None:
    stage = QuantizeStage(QuantizeSettings("post", overrides=("convolution9=2",)))
    with pytest.raises(EsnacError, match="convolution9"):
        stage.run(source, tmp_path / "target", context)


def test_rounding_a_pruned_student_keeps_its_zeros_in_all_rows(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    """The rows "rounded" are of the same network as the stage `post`."""
    pruned = store.load(source)
    with torch.no_grad():
        for weight in pruned.parameters():
            if weight.dim() > 1:
                weight[weight.abs() < weight.abs().quantile(0.7)] = 0
    store.save(tmp_path / "pruned", pruned)
    settings = QuantizeSettings("post", weights=2, ends=None)
    result = QuantizeStage(settings).run(tmp_path / "pruned", tmp_path / "target", context)
    table = runs(result)
    assert table["post"] in (table["rounded"], table["rounded, recalibrated"])


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.6), (0.6, 0.5), (0.5, 0.5)])
def test_statistics_are_gathered_anew_where_that_helps(
    before: float, after: float, source: Path, context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    work = _Work(QuantizeSettings("post", weights=2), source, context)
    student = work.load()
    norm = next(m for m in student.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_var is not None
    plain, found = norm.running_var.clone(), iter([before, after])
    monkeypatch.setattr(_Work, "validation", lambda *_: next(found))
    work.recalibrate_if_better(student)
    assert torch.equal(norm.running_var, plain) == (after < before)


def test_rounding_a_network_without_norms(tmp_path: Path, context: StageContext) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 64, 3),
    )  # fmt: skip
    store.save(tmp_path / "source", StudentNetwork(trace(module, (1, 8, 8))))
    stage = QuantizeStage(QuantizeSettings("post", weights=4))
    assert stage.run(tmp_path / "source", tmp_path / "target", context).bytes > 0


def test_training_on_keeps_the_packed_file(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    settings = QuantizeSettings("lsq", weights=4, epochs=1, without_teacher=False)
    middle = QuantizeStage(settings).run(source, tmp_path / "middle", context)
    training = dataclasses.replace(TRAINING, epochs=1)
    result = FullTraining(training).run(middle.path, tmp_path / "target", context)
    assert result.bytes == (tmp_path / "target" / store.PACKED).stat().st_size < 2 * middle.bytes
    with pytest.raises(EsnacError, match="would drop its quantisers"):
        FullTraining(training, from_scratch=True).run(middle.path, tmp_path / "none", context)
