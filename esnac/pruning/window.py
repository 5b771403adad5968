"""When something acts: every so many epochs from a start to an end."""

from __future__ import annotations

from dataclasses import dataclass

from esnac.errors import SettingsError
from esnac.settings import require


@dataclass(frozen=True)
class Window:
    """Fires at `start`, `start + frequency`, ... before `end` (epochs from 0)."""

    start: int
    end: int
    frequency: int = 1

    def __post_init__(self) -> None:
        require(self.start >= 0, "start", "at least 0", self.start)
        require(self.frequency >= 1, "frequency", "at least 1", self.frequency)
        require(
            self.end > self.start,
            "end",
            f"greater than start ({self.start}), or nothing ever fires",
            self.end,
        )

    @property
    def firings(self) -> range:
        return range(self.start, self.end, self.frequency)

    @property
    def last(self) -> int:
        return self.firings[-1]

    def check_fits(self, epochs: int, what: str) -> None:
        """SettingsError unless all firings lie within a training of `epochs`."""
        if self.last >= epochs:
            raise SettingsError(
                f"{what} fires last at epoch {self.last}, but the training has epochs 0 to "
                f"{epochs - 1}. Train longer, or set end to at most {epochs}."
            )
