"""What a user may choose about the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from esnac.settings import require

#: Settings that say how images are read, not which ones.
READING = ("stream", "workers")


@dataclass(frozen=True)
class DataSettings:
    """None means the set's own default."""

    #: Training and validation images together, the same number of each class; the test set stays.
    limit: int | None = None
    #: Images cut from the training images: 5,000 for CIFAR (ESNAC), 10 % for other sets and at most
    #: 10 % of `limit`. A number given here is taken as it is.
    validation: int | None = None
    #: Draws the validation images, and those of `limit`. 127: the seed of the published results.
    split_seed: int = 127
    #: Side in pixels to which images of folders and Parquet files are scaled and cropped.
    size: int = 32
    #: Zero pixels on each side before a random crop: 4 for CIFAR (ESNAC), 1 for digits.
    padding: int | None = None
    #: Mirror images, half of the time: yes for CIFAR, no for digits.
    flip: bool | None = None
    #: Leave the images of a folder on disk and decode them when they are needed; results are the
    #: same. "auto": where decoded they would take more than a quarter of the memory.
    stream: bool | Literal["auto"] = "auto"
    #: Processes that decode streamed images ahead of the training; 0: it waits for each batch.
    workers: int = 2

    def __post_init__(self) -> None:
        for key, least in (
            ("limit", 1),
            ("validation", 1),
            ("size", 1),
            ("padding", 0),
            ("workers", 0),
        ):
            value = getattr(self, key)
            holds = value is None or value >= least
            require(holds, f"data.{key}", f"at least {least}", value)
        seed = self.split_seed
        require(0 <= seed < 2**63, "data.split_seed", "in [0, 2**63)", seed)
        require(
            self.stream in (True, False, "auto"), "data.stream", "true, false or auto", self.stream
        )


def content(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Of plain data settings those that decide which images there are and how they look."""
    return {key: value for key, value in plain.items() if key not in READING}
