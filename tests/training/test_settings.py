from __future__ import annotations

from typing import Any

import pytest

from esnac.errors import SettingsError
from esnac.settings import build, to_plain
from esnac.training import TrainingSettings


def test_plain_data_reads_back() -> None:
    settings = TrainingSettings(epochs=300, schedule="step", milestones=(100, 200), clip_norm=5.0)
    assert build(TrainingSettings, to_plain(settings)) == settings


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"momentum": 0.0, "nesterov": True},
        {"weight_decay": -1e-4},
        {"clip_norm": 0.0},
        {"temperature": 0.0},
        {"schedule": "step"},
        {"schedule": "cosine", "milestones": (3,)},
        {"schedule": "step", "milestones": (5, 3)},
        {"schedule": "step", "milestones": (0, 3)},
        {"label_weight": 0.0},
        {"ask_teacher": "wrong"},
        {"distillation": "logit_mse", "ask_teacher": "entropy", "ask_entropy": -1.0},
        {"label_weight": 0.0, "distillation": "logit_mse", "distillation_weight": 0.0},
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        TrainingSettings(**{"epochs": 10, **values})


def test_milestones_of_another_schedule_say_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"set milestones=\[\]"):
        TrainingSettings(epochs=10, schedule="cosine", milestones=(3,))


def test_distills() -> None:
    assert not TrainingSettings(epochs=1).distills
    assert TrainingSettings(epochs=1, distillation="soft_targets").distills
