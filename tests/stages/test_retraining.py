from __future__ import annotations

from esnac.stages.retraining import retraining
from esnac.training import TrainingSettings

PUBLISHED = TrainingSettings(300, learning_rate=0.01, schedule="step", milestones=(100, 200))


def test_nothing_given_nothing_changed() -> None:
    assert retraining(PUBLISHED) == PUBLISHED


def test_milestones_keep_their_share() -> None:
    short = retraining(PUBLISHED, epochs=30, learning_rate=0.001, distillation="soft_targets")
    assert (short.epochs, short.milestones, short.schedule) == (30, (10, 20), "step")
    assert (short.learning_rate, short.distillation) == (0.001, "soft_targets")


def test_without_room_for_milestones_the_rate_is_constant() -> None:
    assert retraining(PUBLISHED, epochs=2).milestones == (1,)
    one = retraining(PUBLISHED, epochs=1)
    assert (one.milestones, one.schedule) == ((), "constant")


def test_no_small_windows_for_who_is_trained() -> None:
    """With them distillation would be refused."""
    early = TrainingSettings(30, early_epochs=10)
    assert retraining(early, epochs=5, distillation="soft_targets").early_epochs == 0
