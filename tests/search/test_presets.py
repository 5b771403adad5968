from __future__ import annotations

import dataclasses

import pytest

from esnac.errors import EsnacError
from esnac.search.presets import PRESETS, preset
from esnac.search.settings import RunSettings
from esnac.settings import build, merge

NAMES = {"network": "resnet20", "dataset": "digits"}


def built(name: str, images: int = 45_000) -> RunSettings:
    return build(RunSettings, merge(preset(name, images), NAMES))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("images", [1, 100, 1_257, 45_000, 10**7])
def test_presets_are_valid_settings_for_any_size(name: str, images: int) -> None:
    built(name, images)


def test_full_is_what_the_defaults_are() -> None:
    assert built("full") == build(RunSettings, NAMES)


def test_paper_is_what_was_published() -> None:
    """Cao, Wang, Kitani, ICLR 2019: 160 evaluations, 4 layers of 64 units, 300 epochs."""
    settings = built("paper")
    assert settings.search.steps * settings.search.batch == 160
    assert (settings.surrogate.hidden, settings.surrogate.layers) == (64, 4)
    assert (settings.evaluation.epochs, settings.finish.training.epochs) == (10, 300)


@pytest.mark.parametrize(
    ("images", "evaluation", "full"),
    [
        (45_000, 1, 5),  # 30,000 / 45,000 and 80,000 / 45,000, the latter below the least
        (10_000, 3, 8),
        (5_000, 6, 16),
        (1_257, 20, 64),  # digits
        (100, 20, 100),
    ],
)
def test_epochs_of_quick_follow_the_number_of_images(
    images: int, evaluation: int, full: int
) -> None:
    settings = built("quick", images)
    assert settings.evaluation.epochs == evaluation
    assert settings.finish.training.epochs == full


def test_engines_of_the_presets() -> None:
    engines = {name: built(name).search.engine for name in PRESETS}
    assert engines == {"quick": "esnac", "full": "esnac", "paper": "paper"}
    full, paper = built("full"), built("paper")
    assert dataclasses.replace(full, search=paper.search) == paper


def test_quick_is_smaller_than_paper_on_the_same_space() -> None:
    quick, paper = built("quick"), built("paper")
    assert quick.space == paper.space
    assert quick.evaluation.distillation == paper.evaluation.distillation == "logit_mse"
    assert quick.search.steps * quick.search.batch < paper.search.steps * paper.search.batch


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(EsnacError, match=r"papr.*paper"):
        preset("papr", 100)
