from __future__ import annotations

import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.pact import PACTActivation, PACTSettings


def test_values_and_gradients_worked_by_hand() -> None:
    """alpha = 3, two bits: 0, 1, 2, 3."""
    quantizer = PACTActivation(PACTSettings(2, start=3.0, signed=False))
    x = torch.tensor([-1.0, 0.4, 1.7, 2.9, 3.0, 7.0], requires_grad=True)
    value = quantizer(x)
    assert value.tolist() == [0, 0, 2, 3, 3, 3]
    (value * torch.tensor([1.0, 2, 4, 8, 16, 32])).sum().backward()
    assert x.grad.tolist() == [0, 2, 4, 8, 0, 0]
    assert quantizer.raw_bound.grad.item() == 16 + 32


def test_with_negative_values_the_range_is_symmetric() -> None:
    quantizer = PACTActivation(PACTSettings(2))
    x = torch.tensor([[-4.0, -1.0, 0.5, 3.0, 2.1]], requires_grad=True)
    value = quantizer(x)  # the first batch: alpha = 4, steps -4, 0, 4
    assert quantizer.bound == 4
    assert value.tolist() == [[-4, 0, 0, 4, 4]]
    value.sum().backward()
    assert quantizer.raw_bound.grad.item() == -1
    assert x.grad.tolist() == [[0, 1, 1, 1, 1]]


def test_start_and_evaluation() -> None:
    quantizer = PACTActivation(PACTSettings(4))
    with pytest.raises(EsnacError, match="has seen no data"):
        quantizer.eval()(torch.ones(2))
    quantizer.train()(torch.tensor([[0.0, 6.0, 1.0]]))
    assert quantizer.bound == 6
    again = PACTActivation(PACTSettings(4))
    again.load_state_dict(quantizer.state_dict())
    x = torch.rand(3, 4) * 8
    assert torch.equal(again.eval()(x), quantizer.eval()(x))
    assert len(quantizer(torch.linspace(0, 8, 1000)).unique()) == 16


def test_settings_that_are_refused() -> None:
    for bits in (0, 33):
        with pytest.raises(EsnacError, match="from 1 to 8"):
            PACTSettings(bits)
    with pytest.raises(EsnacError, match="start must be above 0"):
        PACTSettings(4, start=0.0)
    with pytest.raises(EsnacError, match="negative values"):
        PACTActivation(PACTSettings(1))(torch.randn(4, 4))
