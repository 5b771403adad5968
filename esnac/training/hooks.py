"""What acts on a training besides its loss and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Hooks:
    """Each is called with the epoch (from 0) and may be left out; all follow from it alone.

    `before_epoch` changes the network, as a mask does: what it leaves must be part of the
    state_dict, whose keys and shapes stay. `penalty` gives a scalar that is added to the loss of
    each step, but not to the loss that is reported. `rate` is a factor on the learning rate.
    `settled` is the first epoch whose weights may be kept as the best. `about` says in words or
    numbers what acts: a checkpoint of another training is not continued.
    """

    before_epoch: Callable[[int], None] | None = None
    penalty: Callable[[int], Tensor] | None = None
    rate: Callable[[int], float] | None = None
    settled: int = 0
    about: str = ""


NO_HOOKS = Hooks()
