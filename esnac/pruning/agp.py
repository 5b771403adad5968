"""Automated gradual pruning: the sparsity of each epoch (Zhu and Gupta 2017, arXiv 1710.01878)."""

from __future__ import annotations

from esnac.errors import SettingsError
from esnac.pruning.window import Window
from esnac.settings import require


def check(initial: float, final: float, window: Window) -> None:
    """SettingsError unless the sparsity can rise from `initial` to `final` in the window."""
    for name, value in (("initial", initial), ("sparsity", final)):
        require(0 <= value < 1, name, "in [0, 1)", value)
    require(final > initial, "sparsity", f"greater than initial ({initial})", final)
    if len(window.firings) < 2:
        raise SettingsError(
            f"Gradual pruning from epoch {window.start} to {window.end} every {window.frequency} "
            "epochs fires only once. Widen the window, or use method 'magnitude'."
        )


def sparsity_at(epoch: int, initial: float, final: float, window: Window) -> float:
    """The share of zeros in force at `epoch`: 0 before the window, `final` after its last firing.

        s = final + (initial - final) (1 - (e - start) / span)^3,   e the last firing up to `epoch`

    The span ends at the last firing, which therefore reaches `final` exactly.
    """
    if epoch < window.start:
        return 0.0
    fired = min(epoch, window.last)
    fired -= (fired - window.start) % window.frequency
    left = 1 - (fired - window.start) / (window.last - window.start)
    return final + (initial - final) * left**3
