"""What a user may choose about the data."""

from __future__ import annotations

from dataclasses import dataclass

from esnac.errors import SettingsError


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

    def __post_init__(self) -> None:
        for key, least in (("limit", 1), ("validation", 1), ("size", 1), ("padding", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise SettingsError(f"data.{key} must be at least {least}; got {value}.")
        if not 0 <= self.split_seed < 2**63:
            raise SettingsError(f"data.split_seed must be in [0, 2**63); got {self.split_seed}.")
