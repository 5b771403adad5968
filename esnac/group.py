"""Several processes that train one network together, as one of them sees them.

Every rank draws the same batches and takes its rows of each, so that batch size, schedule and steps
are those of one process. Whatever decides how a training goes on (a loss, an accuracy, an error) is
the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from esnac.errors import EsnacError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """`rank` of `size` processes of torch's default process group; as it stands, one alone.

    `sum`, `max` and `from_first` are called by all ranks in the same order; alone they do nothing.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Group:
        """The group that torch.distributed was initialised with."""
        return cls(distributed.get_rank(), distributed.get_world_size())

    def rows(self, count: int) -> slice:
        """Which of `count` rows are this rank's: all of a size, up to one; possibly none."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, count: int) -> tuple[slice, float]:
        """The rows of a batch that this rank trains on, and the share of the loss that they bear.

        A batch of fewer than two rows for each rank is trained on by all of them: some layers
        cannot do with fewer.
        """
        if count < 2 * self.size:
            return slice(0, count), 1 / self.size
        rows = self.rows(count)
        return rows, (rows.stop - rows.start) / count

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; `tensor` itself if alone, else another one."""
        return self._reduced(tensor, distributed.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """The largest over ranks, value by value; `tensor` itself if alone, else another one."""
        return self._reduced(tensor, distributed.ReduceOp.MAX)

    def _reduced(self, tensor: Tensor, how: distributed.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, how)
        return total

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; likewise an EsnacError that it raises."""
        if self.size == 1:
            return make()
        box: list[T | EsnacError | None] = [None]
        if self.rank == 0:
            try:
                box = [make()]
            except EsnacError as error:
                box = [error]
        distributed.broadcast_object_list(box)
        if isinstance(box[0], EsnacError):
            raise box[0]
        return box[0]  # type: ignore[return-value]


#: One process that trains by itself.
ALONE = Group()


class Observer(nn.Module):
    """A layer that keeps what it learns of its inputs: of those of all ranks of its `group`.

    Whoever trains it in a group sets that for the time.
    """

    group: Group = ALONE
