"""What every quantiser keeps, so that attaching, saving and packing need not know which one it is.

A quantiser of weights is a parametrization: it gets the trained ("master") weight and gives the one
that the network computes with. A quantiser of activations is the submodule `input_quantizer` of the
layer whose input it quantises.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.group import Observer
from esnac.quantization.codes import Codes
from esnac.settings import require

#: Widest codes that are kept in fewer than 32 bits.
MOST_BITS = 8


class WeightSettings(Protocol):
    """A frozen dataclass of plain values with the quantiser it describes."""

    @property
    def bits(self) -> float: ...

    def build(self, weight: Tensor) -> WeightQuantizer: ...


class ActivationSettings(Protocol):
    @property
    def bits(self) -> int: ...

    def build(self) -> ActivationQuantizer: ...


class WeightQuantizer(nn.Module):
    """Same shape and dtype out as in; `decode(codes(w))` is bitwise what it gives in eval mode.

    `enabled` False makes it the identity. `fired` tells whether it ever ran.
    """

    settings: Any

    def __init__(self, settings: WeightSettings) -> None:
        super().__init__()
        self.settings = settings
        self.enabled = True
        self.fired = False

    def forward(self, weight: Tensor) -> Tensor:
        self.fired = True
        return self.quantize(weight) if self.enabled else weight

    def quantize(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def codes(self, weight: Tensor) -> Codes:
        raise NotImplementedError


class ActivationQuantizer(Observer):
    """Quantises a tensor whose first dimension counts examples.

    What it must learn of its inputs (range, sign) it starts from the first batches that it sees in
    training mode, on all ranks of its group; a call in eval mode before that is an EsnacError.
    `layer` is the path of the layer it belongs to. `enabled` False makes it the identity; `fired`
    tells whether it ever ran.
    """

    settings: Any

    def __init__(self, settings: ActivationSettings) -> None:
        super().__init__()
        self.settings = settings
        self.enabled = True
        self.fired = False
        self.layer = ""
        self._known = False
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, x: Tensor) -> Tensor:
        self.fired = True
        if not self.enabled:
            return x
        if self.training:
            with torch.no_grad():
                self.observe(x.detach())
        if not self._known:
            if not self.recall():
                if self.training:  # nothing but zeros so far
                    return x
                raise EsnacError(
                    f"The activation quantiser of layer {self.layer!r} has seen no data (or only "
                    "zeros) and has no range yet. Train or calibrate the network first."
                )
            self._known = True
        return self.quantize(x)

    def observe(self, x: Tensor) -> None:
        """Called with every batch in training mode, before it is quantised."""

    def span(self, x: Tensor) -> Tensor:
        """The smallest and the largest value (2) of the `x` of all ranks."""
        low, high = x.aminmax()
        low, high = self.group.max(torch.stack([-low, high]))
        return torch.stack([-low, high])

    def recall(self) -> bool:
        """Whether the range is known; reads it from the tensors, after a start or a load."""
        return True

    def quantize(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """Exactly `value`, with its gradient passed on to `source` (same shape) as it is.

    Unlike `source + (value - source).detach()`, which is off by rounding.
    """
    return _StraightThrough.apply(source, value.detach())


def require_bits(bits: float, name: str = "bits", least: float = 1, whole: bool = True) -> None:
    """Raises SettingsError unless `least` <= bits <= MOST_BITS, and whole if so asked."""
    kind = "a whole number of bits" if whole else "bits"
    fits = least <= bits <= MOST_BITS and (not whole or bits == int(bits))
    require(fits, name, f"{kind} from {least:g} to {MOST_BITS}", bits)


def _forget(quantizer: nn.Module, _keys: Any) -> None:
    assert isinstance(quantizer, ActivationQuantizer)
    quantizer._known = False
