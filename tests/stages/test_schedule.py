from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import esnac
from esnac import api
from esnac.data import DataSet
from esnac.errors import RunError, SettingsError
from esnac.graphs import student as students
from esnac.preparation import Folders
from esnac.pruning.layers import prunable
from esnac.pruning.magnitude import zeros_of
from esnac.pruning.schedule import firings, load
from esnac.quantization import store
from esnac.quantization.attach import weight_codes
from esnac.stages._base import StageContext
from esnac.stages.pipeline import links, resolve
from esnac.stages.schedule import KEPT, ScheduleSettings, ScheduleStage, _Acting
from esnac.training import EpochRecord
from tests.stages.test_prune import context, source, student, weights

__all__ = ["context", "source"]

PRUNED = """
epochs = 5

[[pruners]]
layers = ["second", "fc"]
sparsity = 0.6
end = 3

[[regularizers]]
strength = 0.001
end = 2

[[learning_rate]]
factor = 0.5
start = 3
"""

QUANTIZED = (
    PRUNED
    + """
[[quantizers]]
method = "lsq"
weights = 4
activations = 4
exclude = ["conv"]
start = 3
"""
)


def stage(tmp_path: Path, text: str) -> ScheduleStage:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return ScheduleStage(ScheduleSettings(path=str(path), distillation="none"))


def test_a_schedule_runs_and_is_kept_with_the_student(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    rates: list[float] = []
    watched = dataclasses.replace(context, on_epoch=lambda r: rates.append(r.learning_rate))
    result = stage(tmp_path, PRUNED).run(source, tmp_path / "a", watched)
    levels = {"conv.weight": 0.0, "second.weight": 0.6, "fc.weight": 0.6}
    for name, weight in weights(tmp_path / "a").items():
        assert (weight == 0).sum() == zeros_of(levels[name], weight.numel())
    assert load(tmp_path / "a" / KEPT) == load(tmp_path / "plan.toml")
    assert len(rates) == 5
    fired = [(row["epoch"], row["what"]) for row in result.details["fired"]]
    assert fired[:2] == [("0", "prune agp"), ("0", "penalty scales")]
    assert fired[-1] == ("4", "learning rate")
    assert result.details["accuracy"][-1] == {"run": "after", "accuracy": result.accuracy}
    assert result.accuracy > 0.6


def test_quantisers_start_when_they_are_due(source: Path, tmp_path: Path) -> None:
    network = students.load(source)
    schedule = stage(tmp_path, QUANTIZED).schedule
    acting = _Acting(network, schedule)
    for epoch in range(5):
        acting.before_epoch(epoch)
        levels = prunable(network)["fc.weight"].unique().numel()
        assert (levels <= 16) == (epoch >= 3)
        network.train()(torch.randn(8, 1, 8, 8))
    assert prunable(network)["conv.weight"].unique().numel() > 16
    assert sorted(weight_codes(network)) == ["fc.weight", "second.weight"]
    assert (prunable(network)["fc.weight"] == 0).float().mean() >= 0.59


def test_quantisers_act_where_their_window_fires_and_from_its_end_on(
    source: Path, tmp_path: Path
) -> None:
    network = students.load(source)
    text = QUANTIZED.replace("start = 3\n", "start = 1\nend = 4\nfrequency = 2\n")
    schedule = stage(tmp_path, text).schedule
    acting, few = _Acting(network, schedule), []
    for epoch in range(5):
        acting.before_epoch(epoch)
        few.append(prunable(network)["fc.weight"].unique().numel() <= 16)
        network.train()(torch.randn(8, 1, 8, 8))
    assert few == [False, True, False, True, True]
    assert schedule.settled == 3
    rows = firings(network, schedule)
    assert [row[0] for row in rows if row[1] == "quantize lsq"] == ["1", "3"]


@pytest.mark.parametrize("done", [2, 4])
def test_pruned_and_quantised_in_one_training_also_when_interrupted(
    done: int, source: Path, tmp_path: Path, context: StageContext
) -> None:
    whole = stage(tmp_path, QUANTIZED).run(source, tmp_path / "whole", context)
    epochs: list[int] = []

    def interrupt(record: EpochRecord) -> None:
        epochs.append(record.epoch)
        if len(epochs) == done:
            raise KeyboardInterrupt

    watched = dataclasses.replace(context, on_epoch=interrupt)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, QUANTIZED).run(source, tmp_path / "broken", watched)
    broken = stage(tmp_path, QUANTIZED).run(source, tmp_path / "broken", watched)
    assert epochs == [0, 1, 2, 3, 4]
    assert broken.accuracy == pytest.approx(whole.accuracy, abs=0.03)
    ours, theirs = (prunable(store.load(tmp_path / name)) for name in ("whole", "broken"))
    assert all(torch.allclose(w, theirs[name], atol=1e-3) for name, w in ours.items())
    assert (ours["fc.weight"] == 0).float().mean() >= 0.6 - 1 / 1536


def test_what_does_not_fit_is_an_error_before_any_training(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    with pytest.raises(SettingsError, match=r"'sekond' matches nothing\. Near: second"):
        stage(tmp_path, PRUNED.replace("second", "sekond")).run(source, tmp_path / "a", context)
    assert not (tmp_path / "a").exists()
    with pytest.raises(SettingsError, match="Cannot read"):
        ScheduleSettings(path=str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="path must be a TOML file"):
        ScheduleSettings()
    plan = stage(tmp_path, PRUNED).schedule
    with pytest.raises(SettingsError, match="path has no effect beside a plan"):
        ScheduleSettings(path="plan.toml", plan=plan)


def test_a_resolved_chain_holds_what_the_file_says(tmp_path: Path) -> None:
    path, other = tmp_path / "plan.toml", tmp_path / "other.toml"
    for file in (path, other):
        file.write_text(QUANTIZED)
    chain, same = (resolve([{"stage": "schedule", "path": str(p)}]) for p in (path, other))
    assert chain == same, "whatever the name"
    path.unlink()
    stored = json.loads(json.dumps(chain))
    assert resolve(stored) == chain
    assert links(stored)[0].stage == ScheduleStage(ScheduleSettings(path=str(other)))


def test_a_run_needs_its_file_no_more_and_takes_no_other(
    bars: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = bars.to("cpu"), student(0)
    path = tmp_path / "plan.toml"
    chain = f'train(epochs=1), schedule(file, path="{path}")'
    settings = {"finish": {"training": {"batch_size": 32, "precision": "float32"}}}

    def compress(resume: bool) -> esnac.SearchResult:
        return esnac.compress(
            model, data, chain, settings, runs=tmp_path, name="a", device="cpu", resume=resume
        )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path.write_text("epochs = 1\n[[learning_rate]]\nfactor = 0.1\n")
    with monkeypatch.context() as patch:
        patch.setattr(ScheduleStage, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compress(resume=False)
    path.write_text("epochs = 2\n[[learning_rate]]\nfactor = 0.1\n")
    with pytest.raises(RunError, match="started with other settings"):
        compress(resume=True)
    path.unlink()
    monkeypatch.setattr(api.data_room, "load", lambda *_: data)
    api.finish(tmp_path / "a", Folders(tmp_path, tmp_path), device="cpu")
    assert load(tmp_path / "a" / "finalists" / "0" / "2-schedule-file" / KEPT).epochs == 1
