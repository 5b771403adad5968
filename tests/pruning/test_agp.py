from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esnac.errors import SettingsError
from esnac.pruning import agp
from esnac.pruning.window import Window

#: Final sparsity -> values at epochs 0, 2, ..., 18 of the window 0-20 every 2, from 0.05.
TABLE = {
    0.25: (
        0.05, 0.109534, 0.155898, 0.190741, 0.215706, 0.232442, 0.242593, 0.247805, 0.249726, 0.25,
    ),
    0.6: (0.05, 0.213717, 0.341221, 0.437037, 0.505693, 0.551715, 0.57963, 0.593964, 0.599246, 0.6),
    0.7: (0.05, 0.243484, 0.39417, 0.507407, 0.588546, 0.642936, 0.675926, 0.692867, 0.699108, 0.7),
}  # fmt: skip


@pytest.mark.parametrize("final", TABLE)
def test_values_of_the_published_schedule(final: float) -> None:
    window = Window(0, 20, 2)
    values = [agp.sparsity_at(epoch, 0.05, final, window) for epoch in window.firings]
    assert values == pytest.approx(TABLE[final], abs=1e-6)
    assert values[-1] == final


@given(
    start=st.integers(0, 9), length=st.integers(2, 30), frequency=st.integers(1, 5),
    final=st.floats(0.06, 0.99),
)  # fmt: skip
def test_it_rises_and_holds_between_firings(
    start: int, length: int, frequency: int, final: float
) -> None:
    window = Window(start, start + length * frequency, frequency)
    agp.check(0.05, final, window)
    values = [agp.sparsity_at(e, 0.05, final, window) for e in range(window.end + 5)]
    assert values == sorted(values)
    assert set(values[:start]) <= {0.0}
    assert values[start] == pytest.approx(0.05)
    assert set(values[window.last :]) == {final}
    for epoch in range(start, window.last):
        if epoch + 1 not in window.firings:
            assert values[epoch + 1] == values[epoch]


@pytest.mark.parametrize(
    ("initial", "final", "window", "message"),
    [
        (0.05, 1.0, Window(0, 8), r"sparsity must be in \[0, 1\)"),
        (-0.1, 0.5, Window(0, 8), r"initial must be in \[0, 1\)"),
        (0.5, 0.5, Window(0, 8), "greater than initial"),
        (0.05, 0.5, Window(0, 2, 2), "fires only once"),
    ],
)
def test_what_cannot_rise(initial: float, final: float, window: Window, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        agp.check(initial, final, window)
