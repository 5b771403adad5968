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

    All methods but `rows` are called by all ranks in the same order. Alone they do nothing.
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

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with all ranks' weights those of rank 0, and gradients their mean over ranks.

        Batch norm takes the statistics of a rank's own rows, as usual (Goyal et al. 2017, section
        2.3); `average_buffers` joins the running ones.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def average_buffers(self, model: nn.Module) -> None:
        """Running statistics become their mean over ranks."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.sum(buffer) / self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; `tensor` itself if alone, else another one."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
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
