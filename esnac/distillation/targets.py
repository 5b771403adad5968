"""The teacher's logits, computed once per epoch of augmentation and shared by all trainings.

Of streamed images they are computed for each batch anew: all of them may be too many to keep.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from esnac.data.batches import training_batches
from esnac.data.sets import DataSet
from esnac.group import ALONE, Group
from esnac.runtime import (
    WantedPrecision,
    evaluating,
    inference_batch,
    mean_width,
    resolve_precision,
)

#: Where fewer epochs than this would fit in memory as float32, they are stored as float16.
FEW_EPOCHS = 32


class TeacherTargets:
    """`epoch(e)`: logits of all training images under the augmentation of (`seed`, e).

    `teacher` and `data` lie on `device`; the teacher is not changed, and must not be while this
    is in use. Epochs are stored on the device until `max_bytes` are taken; later ones are computed
    each time. Numerics follow `resolve_precision(precision)`. The ranks of a `group` share the
    work; all of them ask for the same epochs in the same order.
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: DataSet,
        seed: int,
        device: torch.device,
        precision: WantedPrecision = "auto",
        max_bytes: int = 2**31,
        group: Group = ALONE,
    ) -> None:
        self.seed = seed
        self._group = group
        self._teacher, self._data, self._device = teacher, data, device
        self._max_bytes = max_bytes
        width = mean_width(teacher, data.input_shape, device) if precision == "auto" else 0.0
        self._numerics = resolve_precision(precision, device, width)
        self._stored: dict[int, Tensor] = {}

    def epoch(self, epoch: int) -> Tensor | Callable[[Tensor], Tensor]:
        """N x classes logits in the order of `data.train`: float32, or float16 (FEW_EPOCHS).

        Of streamed images instead what gives the logits of a batch of inputs.
        """
        if self._data.streamed:
            return self._answer
        if not (self._data.padding or self._data.flip):
            epoch = 0  # nothing is augmented: all epochs are the same
        if epoch not in self._stored:
            logits = self._compact(self._run(epoch))
            if self.stored_bytes + _bytes(logits) > self._max_bytes:
                return logits
            self._stored[epoch] = logits
        return self._stored[epoch]

    @property
    def stored_bytes(self) -> int:
        return sum(map(_bytes, self._stored.values()))

    @torch.no_grad()
    def _answer(self, inputs: Tensor) -> Tensor:
        """B x classes logits, float32."""
        inputs = inputs.contiguous(memory_format=self._numerics.memory_format)
        with evaluating(self._teacher), self._numerics.autocast(self._device):
            logits: Tensor = self._teacher(inputs)
        return logits.float()

    @torch.no_grad()
    def _run(self, epoch: int) -> Tensor:
        count = len(self._data.train)
        batches = training_batches(
            self._data,
            inference_batch(self._device, self._data.input_shape),
            order_generator=None,
            augmentation_seed=self.seed,
            epoch=epoch,
            memory_format=self._numerics.memory_format,
        )
        logits = torch.zeros(count, self._data.num_classes, device=self._device)
        done = 0
        with evaluating(self._teacher), self._numerics.autocast(self._device):
            for inputs, _, _ in batches:
                own = inputs[self._group.rows(len(inputs))]
                start = done + self._group.rows(len(inputs)).start
                if len(own):
                    logits[start : start + len(own)] = self._teacher(own)
                done += len(inputs)
        return self._group.sum(logits)

    def _compact(self, logits: Tensor) -> Tensor:
        return logits.half() if FEW_EPOCHS * _bytes(logits) > self._max_bytes else logits


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
