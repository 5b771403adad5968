from __future__ import annotations

import pytest

from esnac.errors import SettingsError
from esnac.pruning.window import Window


def test_firings() -> None:
    assert list(Window(0, 20, 2).firings) == list(range(0, 20, 2))
    assert Window(0, 20, 3).last == 18
    assert list(Window(5, 6).firings) == [5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((4, 4, 1), "nothing ever fires"),
        ((4, 2, 1), "end must be greater than start"),
        ((-1, 2, 1), "start must be at least 0"),
        ((0, 2, 0), "frequency must be at least 1"),
    ],
)
def test_windows_that_never_fire(values: tuple[int, int, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Window(*values)


def test_a_window_beyond_the_training() -> None:
    Window(0, 20, 2).check_fits(19, "pruner 0")
    with pytest.raises(SettingsError, match=r"pruner 0 fires last at epoch 18.*end to at most 18"):
        Window(0, 20, 2).check_fits(18, "pruner 0")
