from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esnac.errors import EsnacError, SettingsError, TrainingError
from esnac.graphs import student as students
from esnac.graphs.masks import masks_of_zeros
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.pruning.slimming import REACH
from esnac.quantization import store
from esnac.quantization.attach import attach
from esnac.quantization.methods import plan_of
from esnac.quantization.policy import Policy
from esnac.stages._base import StageContext, StageResult
from esnac.stages.prune import PruneSettings, PruneStage
from esnac.stages.slim import SlimSettings, SlimStage
from esnac.training import EpochRecord
from tests.stages.test_prune import context, source, weights

__all__ = ["context", "source"]


def run(source: Path, target: Path, context: StageContext, **settings: Any) -> StageResult:
    if settings.get("finetune", True) or "method" not in settings:  # otherwise nothing is trained
        settings = {"distillation": "none", **settings}
    return SlimStage(SlimSettings(**settings)).run(source, target, context)


def widths(folder: Path) -> dict[str, int]:
    layers = students.load(folder).graph.layers
    return {layer.name: layer.out_shape[0] for layer in layers if layer.kind == "conv"}


def test_half_of_the_channels_go_and_the_table_has_baselines(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    result = run(source, tmp_path / "a", context, sparsity=0.5)
    rows = {row["run"]: row for row in result.details["accuracy"]}
    assert list(rows) == [
        "dense", "trained with the penalty", "cut by scales", "cut by l1", "cut by l2",
        "cut by taylor", "cut by random", "fine-tuned",
    ]  # fmt: skip
    assert rows["fine-tuned"]["params"] == result.params < rows["dense"]["params"]
    assert rows["fine-tuned"]["accuracy"] == result.accuracy > 0.6
    assert sum(widths(tmp_path / "a").values()) in (7, 8), "of 16; the threshold itself goes too"
    assert {row["layer"]: row["after"] for row in result.details["channels"]} == {
        **widths(tmp_path / "a"), "fc": 3,
    }  # fmt: skip
    (told,) = result.details["penalties"]
    assert told["strength"] > 0


@pytest.mark.parametrize("method", ["l1", "taylor", "random"])
def test_other_importances_need_no_sparse_training(
    method: str, source: Path, tmp_path: Path, context: StageContext
) -> None:
    epochs: list[EpochRecord] = []
    watched = dataclasses.replace(context, on_epoch=epochs.append)
    result = run(source, tmp_path / "a", watched, method=method, epochs=2, minimum=3)
    assert len(epochs) == 2
    assert result.details["penalties"] == []
    assert min(widths(tmp_path / "a").values()) >= 3


def test_iterations_share_the_way(source: Path, tmp_path: Path, context: StageContext) -> None:
    """Of 16 channels 75 % in two steps: what is above the median stays, twice."""
    settings: dict[str, Any] = {"sparsity": 0.75, "iterations": 2, "epochs": 1}
    result = run(source, tmp_path / "a", context, method="l1", **settings)
    assert sum(widths(tmp_path / "a").values()) in (3, 4)
    assert [r["run"] for r in result.details["accuracy"]][:2] == ["dense", "1: cut by l1"]
    assert SlimSettings(sparsity=0.75, iterations=2).share == pytest.approx(0.5)


def test_an_interrupted_slimming_goes_on_to_the_same_end(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    settings = {"sparse_epochs": 3, "epochs": 3}
    run(source, tmp_path / "whole", context, **settings)
    epochs: list[int] = []

    def interrupt(record: EpochRecord) -> None:
        epochs.append(record.epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt

    watched = dataclasses.replace(context, on_epoch=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "broken", watched, **settings)
    run(source, tmp_path / "broken", watched, **settings)
    assert epochs == [0, 1, 2] * 2, "no epoch twice"
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.allclose(w, broken[name], atol=1e-4) for name, w in whole.items())


def test_a_pruned_student_is_slimmed_and_keeps_its_zeros(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    pruning = PruneSettings("magnitude", sparsity=0.5, train=False)
    PruneStage(pruning).run(source, tmp_path / "a", context)
    run(tmp_path / "a", tmp_path / "b", context, sparsity=0.3, sparse_epochs=2, epochs=2)
    assert masks_of_zeros(students.load(tmp_path / "b"))


def test_too_strong_a_penalty_is_told(source: Path, tmp_path: Path, context: StageContext) -> None:
    with pytest.raises(TrainingError, match="dead"):
        run(tmp_path / "fresh", tmp_path / "a", context, strength=1.0, sparse_epochs=30)


def test_protected_layers_keep_their_channels(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    run(source, tmp_path / "a", context, exclude=("conv",), sparse_epochs=1, finetune=False)
    assert widths(tmp_path / "a")["conv"] == 8
    assert widths(tmp_path / "a")["second"] in (3, 4)
    with pytest.raises(SettingsError, match=r"'secund' matches nothing\. Near: second"):
        run(source, tmp_path / "b", context, layers=("secund",), method="l1")


def test_a_network_without_norms(tmp_path: Path, context: StageContext) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    students.save(tmp_path / "s", StudentNetwork(trace(module, (1, 8, 8))))
    with pytest.raises(SettingsError, match="no batch norms with scales.*Use another importance"):
        run(tmp_path / "s", tmp_path / "a", context)
    result = run(tmp_path / "s", tmp_path / "b", context, method="l2", finetune=False)
    assert widths(result.path) == {"_0": 1} or min(widths(result.path).values()) < 4


def test_a_quantised_student_is_refused(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    network = students.load(source)
    attach(network, plan_of(network, "qd", Policy(weights=4, activations=32)))
    store.save(tmp_path / "q", network)
    with pytest.raises(EsnacError, match="slim the float student"):
        run(tmp_path / "q", tmp_path / "a", context)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.0}, r"sparsity must be in \(0, 1\)"),
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\)"),
        ({"minimum": 0}, "minimum must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"strength": 0.0}, "strength must be greater than 0"),
        ({"strength": 0.1, "method": "l1"}, "strength belongs to method 'scales'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SlimSettings(**settings)


def test_the_strength_needs_sgd(source: Path, tmp_path: Path, context: StageContext) -> None:
    adam = dataclasses.replace(context.training, optimizer="adam", learning_rate=0.001)
    with pytest.raises(SettingsError, match="follows from the steps of SGD"):
        run(source, tmp_path / "a", dataclasses.replace(context, training=adam))


def test_the_strength_counts_the_steps_that_are_trained(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    """33 images in batches of 32 are one batch, as a single image joins the one before."""
    data = dataclasses.replace(context.data, train=context.data.train.subset(torch.arange(33)))
    training = dataclasses.replace(context.training, schedule="constant", learning_rate=0.5)
    changed = dataclasses.replace(context, data=data, training=training)
    result = run(source, tmp_path / "a", changed, sparse_epochs=2, finetune=False)
    (told,) = result.details["penalties"]
    assert told["strength"] == pytest.approx(REACH * (1 - training.momentum) / (2 * 0.5))
