from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esnac.data import DataSet
from esnac.deployment.micronet import describe, score, task
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, SettingsError
from esnac.graphs import student as students
from esnac.graphs.masks import masks_of_zeros
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.pruning.layers import prunable
from esnac.pruning.magnitude import zeros_of
from esnac.quantization import packed, store
from esnac.quantization.attach import attach, is_quantized
from esnac.quantization.methods import plan_of
from esnac.quantization.policy import Policy
from esnac.runtime import derive_seed
from esnac.stages._base import StageContext
from esnac.stages.full_training import FullTraining
from esnac.stages.notation import parse
from esnac.stages.pipeline import links
from esnac.stages.prune import PruneSettings, PruneStage
from esnac.training import EpochRecord, TrainingSettings

TRAINING = TrainingSettings(
    epochs=6, batch_size=32, learning_rate=0.05, schedule="cosine", precision="float32",
    distillation="soft_targets", weight_decay=1e-3,
)  # fmt: skip


def student(seed: int) -> StudentNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(1, 8, 3, padding=1), norm=nn.BatchNorm2d(8), relu=nn.ReLU(),
                second=nn.Conv2d(8, 8, 3, padding=1), last=nn.BatchNorm2d(8), more=nn.ReLU(),
                flat=nn.Flatten(), fc=nn.Linear(8 * 64, 3),
            )
        )  # fmt: skip
        return StudentNetwork(trace(module, (1, 8, 8)))


@pytest.fixture
def context(bars: DataSet, device: torch.device) -> StageContext:
    seed = derive_seed(7, "augmentation")
    targets = TeacherTargets(student(9).to(device).eval(), bars, seed, device)
    return StageContext(bars, targets, device, 7, 0, TRAINING, teacher_accuracy=0.9)


@pytest.fixture
def source(tmp_path: Path, context: StageContext) -> Path:
    students.save(tmp_path / "fresh", student(0))
    training = dataclasses.replace(TRAINING, distillation="none")
    FullTraining(training).run(tmp_path / "fresh", tmp_path / "source", context)
    return tmp_path / "source"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return prunable(students.load(folder))


def run(source: Path, target: Path, context: StageContext, **settings: Any) -> Any:
    if settings.get("train", True):
        settings = {"distillation": "none", **settings}
    return PruneStage(PruneSettings(**settings)).run(source, target, context)


def test_agp_leaves_exact_zeros_and_tells_where(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    first = next(iter(weights(source)))
    result = run(
        source, tmp_path / "a", context, sparsity=0.7, overrides=(first.partition(".")[0] + "=0.3",)
    )
    for name, weight in weights(tmp_path / "a").items():
        level = 0.3 if name == first else 0.7
        assert (weight == 0).sum() == zeros_of(level, weight.numel())
    assert [row["run"] for row in result.details["accuracy"]] == [
        "dense",
        "without training",
        "agp",
    ]
    assert result.details["accuracy"][-1]["accuracy"] == result.accuracy
    assert result.accuracy > 0.6, "three classes: a guess is right once in three"
    assert sum(row["zeros"] for row in result.details["weights"]) == pytest.approx(
        result.details["sparsity"] * sum(w.numel() for w in weights(tmp_path / "a").values())
    )
    assert (result.stage, result.bytes) == (
        "prune-agp", (tmp_path / "a" / students.WEIGHTS).stat().st_size,
    )  # fmt: skip


@pytest.mark.parametrize("done", [2, 5])
def test_an_interrupted_pruning_goes_on_to_the_same_end(
    done: int, source: Path, tmp_path: Path, context: StageContext
) -> None:
    run(source, tmp_path / "whole", context)
    epochs: list[int] = []

    def interrupt(record: EpochRecord) -> None:
        epochs.append(record.epoch)
        if len(epochs) == done:
            raise KeyboardInterrupt

    watched = dataclasses.replace(context, on_epoch=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "broken", watched)
    run(source, tmp_path / "broken", watched)
    assert epochs == list(range(6)), "no epoch twice"
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.allclose(w, broken[name], atol=1e-4) for name, w in whole.items())


def test_without_training_the_other_weights_stay(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    result = run(source, tmp_path / "a", context, method="nm", exclude=("conv",), train=False)
    before = weights(source)
    for name, weight in weights(tmp_path / "a").items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        assert kept.float().mean() == (1 if name == "conv.weight" else 0.5)
    assert [row["run"] for row in result.details["accuracy"]] == ["dense", "without training"]


def test_zeros_are_masks_to_the_stages_that_follow(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    """Pruned, then trained; pruned more; and to four bits."""
    run(source, tmp_path / "a", context, method="magnitude", sparsity=0.5)
    chain = links(
        [
            {"stage": "train", "method": "finetune", "epochs": 2},
            {"stage": "prune", "method": "magnitude", "sparsity": 0.6, "epochs": 2},
        ]
    )
    before = {name: weight == 0 for name, weight in weights(tmp_path / "a").items()}
    folder = tmp_path / "a"
    for link in chain:
        link.stage.run(folder, tmp_path / str(link.number), context)
        folder = tmp_path / str(link.number)
        for name, weight in weights(folder).items():
            assert not weight[before[name]].any()
    with pytest.raises(EsnacError, match="Nothing was pruned.*that sparse already"):
        run(folder, tmp_path / "b", context, method="magnitude", sparsity=0.3, train=False)
    assert len(masks_of_zeros(students.load(folder))) == 3


@pytest.mark.parametrize(
    ("method", "training"), [("lsq", {"epochs": 1}), ("dq", {"epochs": 1}), ("post", {})]
)
def test_zeros_survive_quantisation(
    method: str, training: dict[str, Any], source: Path, tmp_path: Path, context: StageContext
) -> None:
    run(source, tmp_path / "a", context, method="magnitude", sparsity=0.5, train=False)
    before = {name: weight == 0 for name, weight in weights(tmp_path / "a").items()}
    (link,) = links([{"stage": "quantize", "method": method, "ends": 4} | training])
    link.stage.run(tmp_path / "a", tmp_path / "q", context)
    deployed = packed.read(tmp_path / "q" / store.PACKED)
    for student in (store.load(tmp_path / "q"), deployed):
        for name, weight in prunable(student).items():
            assert not weight[before[name]].any()


def test_a_quantised_student_is_pruned_and_stays_quantised(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    network = students.load(source)
    attach(network, plan_of(network, "qd", Policy(weights=4, activations=32)))
    store.save(tmp_path / "q", network)
    run(tmp_path / "q", tmp_path / "a", context, sparsity=0.5, epochs=3)
    pruned = store.load(tmp_path / "a")
    assert is_quantized(pruned)
    for weight in prunable(pruned).values():
        assert (weight == 0).float().mean() >= 0.5 - 1 / weight.numel()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
        ({"start": 5, "end": 5}, "nothing ever fires"),
        ({"overrides": ("conv",)}, "NAME=SPARSITY"),
        ({"overrides": ("conv=0.5",), "method": "nm"}, "overrides has no effect with method 'nm'"),
        ({"method": "nm", "sparsity": 0.5}, "sparsity has no effect with method 'nm'"),
        ({"method": "magnitude", "end": 5}, "end has no effect"),
        ({"n": 1}, "n has no effect with method 'agp'"),
        ({"train": False, "epochs": 5}, "epochs has no effect without training"),
        ({"train": False, "distillation": "none"}, "distillation has no effect without training"),
        ({"start": 50, "end": 60, "epochs": 12}, "prune-agp fires last at epoch 59"),
        ({"start": 50, "epochs": 12}, "epochs must be at least 52, to prune gradually; got 12"),
        ({"epochs": 1}, "epochs must be at least 2"),
        ({"overrides": ("conv=0.3", "conv=0.4")}, "'conv' is named twice"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PruneSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ("konv",)}, r"'konv' matches nothing\. Near: conv"),
        ({"overrides": ("conv=0.3", "con*=0.4")}, "named twice"),
        ({"end": 9}, "prune-agp fires last at epoch 8"),
        ({"method": "magnitude", "start": 6}, "fires last at epoch 6"),
    ],
)
def test_settings_that_do_not_fit(
    settings: dict[str, Any], message: str, source: Path, tmp_path: Path, context: StageContext
) -> None:
    with pytest.raises(SettingsError, match=message):
        run(source, tmp_path / "a", context, **settings)
    assert not (tmp_path / "a" / students.WEIGHTS).exists()


def test_pruned_then_quantised_then_exported(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    """The chain of the README by its links: zeros and bits of one stage are there in the next."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    chain = (
        "prune(agp, sparsity=0.8, epochs=4), quantize(lsq, weights=4, activations=4, ends=4, "
        "epochs=2, without_teacher=false), export(onnx_int4)"
    )
    results = []
    for link in links(parse(chain)):
        folder = link.folder(tmp_path / "finalist")
        source = link.stage.run(source, folder, context).path
        network = store.load(source)
        results.append(score(network.graph, task("cifar100"), describe(network)))
    pruned, quantised, exported = results
    assert [path.name for path in sorted((tmp_path / "finalist").iterdir())] == [
        "1-prune-agp", "2-quantize-lsq", "3-export-onnx_int4",
    ]  # fmt: skip
    gone = {
        name: weight == 0 for name, weight in weights(tmp_path / "finalist/1-prune-agp").items()
    }
    for name, weight in prunable(store.load(source)).items():
        assert not weight[gone[name]].any()
    sparse = sum(int(zero.sum()) for zero in gone.values())
    dense = sum(zero.numel() for zero in gone.values())
    assert sparse / dense == pytest.approx(0.8, abs=0.01)
    assert quantised.storage < pruned.storage / 2
    assert quantised.multiplies < pruned.multiplies / 4
    assert exported.value == quantised.value
    assert (source / "student.int4.onnx").is_file()
