from __future__ import annotations

import numpy as np
import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.codes import Codes, decode
from esnac.stages.integer_weights import integer_table, integer_weight


@pytest.mark.parametrize(
    ("table", "integers", "unit"),
    [
        ([-2.0, -1.0, 0.0, 1.0], [-2, -1, 0, 1], 1.0),
        ([-1.0, -1 / 3, 1 / 3, 1.0], [-3, -1, 1, 3], 1 / 3),
        ([-0.5, 0.0, 0.5], [-1, 0, 1], 0.5),
        ([0.0], [0], 1.0),
    ],
)
def test_tables_of_multiples(table: list[float], integers: list[int], unit: float) -> None:
    found = integer_table(torch.tensor(table))
    assert found is not None
    assert (found[0].tolist(), found[1]) == (integers, pytest.approx(unit))


def test_tables_of_learned_points_have_none() -> None:
    assert integer_table(torch.tensor([-1.1, -0.3, 0.2, 0.9])) is None


def codes(table: list[float], rows: str | int = "channel", offset: bool = False) -> Codes:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(len(table), (4, 3, 2, 2), generator=generator, dtype=torch.uint8)
    count = {"tensor": 1, "channel": 4}.get(str(rows), 6)
    scale = torch.rand(count, 1, generator=generator) + 0.1
    shift = torch.ones_like(scale) if offset else None
    keep = torch.rand(4, 3, 2, 2, generator=generator) > 0.3
    return Codes(values, torch.tensor(table), scale, shift, rows, keep)


@pytest.mark.parametrize(
    ("table", "least", "bits"),
    [
        ([-2.0, -1.0, 0.0, 1.0], 2, 2),
        ([-2.0, -1.0, 0.0, 1.0], 4, 4),
        ([-1.0, -1 / 3, 1 / 3, 1.0], 2, 4),  # -3 and 3 are beyond 2 bits
        ([float(i) for i in range(-128, 128)], 2, 8),
    ],
)
@pytest.mark.parametrize("rows", ["tensor", "channel"])
def test_integers_give_the_values(table: list[float], least: int, bits: int, rows: str) -> None:
    """Masked weights too, though the table of the second to last has no zero."""
    quantised = codes(table, rows)
    found = integer_weight("a", quantised, least)
    assert found.bits == bits
    values = found.codes * found.scale.reshape(-1, 1, 1, 1)
    assert np.allclose(values, decode(quantised).numpy(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("quantised", "message"),
    [
        (codes([-1.0, 0.0, 1.0], rows=8), "'a' has a scale per 8 values"),
        (codes([-1.0, 0.0, 1.0], offset=True), "'a' has levels with an offset"),
        (codes([-1.1, -0.3, 0.2, 0.9]), "'a' are not evenly spaced"),
        (codes([-1.0, 0.0, 0.004]), "-250 to 1, need over 8 bits"),
    ],
)
def test_other_codes_are_refused(quantised: Codes, message: str) -> None:
    with pytest.raises(EsnacError, match=message):
        integer_weight("a", quantised, 2)
