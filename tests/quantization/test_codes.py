from __future__ import annotations

import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.codes import Codes, count_rows, decode, row_length, spread


def test_values_are_table_times_scale_plus_offset() -> None:
    codes = Codes(
        codes=torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.uint8),
        table=torch.tensor([0.0, 0.5, 1.0]),
        scale=torch.tensor([[2.0], [4.0]]),
        offset=torch.tensor([[-1.0], [1.0]]),
        rows="channel",
        keep=torch.tensor([[True, True, False], [True, True, True]]),
    )
    assert decode(codes).tolist() == [[-1.0, 0.0, 0.0], [5.0, 3.0, 1.0]]
    assert codes.levels == 3


def test_the_last_bucket_may_be_short() -> None:
    scale = torch.tensor([[1.0], [2.0], [3.0]])
    codes = Codes(torch.ones(7, dtype=torch.uint8), torch.tensor([0.0, 1.0]), scale, None, 3)
    assert decode(codes).tolist() == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("shape", "rows", "length", "count"),
    [((4, 3, 2), "tensor", 24, 1), ((4, 3, 2), "channel", 6, 4), ((4, 3, 2), 5, 5, 5)]
    + [((), "tensor", 1, 1), ((), "channel", 1, 1), ((0, 3), "channel", 1, 0)],
)
def test_rows(shape: tuple[int, ...], rows: str | int, length: int, count: int) -> None:
    assert row_length(shape, rows) == length
    assert count_rows(shape, rows) == count
    spaced = spread(torch.arange(count).float().reshape(-1, 1), shape, rows)
    flat = spaced.expand(shape).flatten().tolist()
    assert flat == [i // length for i in range(len(flat))]


@pytest.mark.parametrize("rows", [0, -1, True, "bucket"])
def test_rows_that_are_none(rows: object) -> None:
    with pytest.raises(EsnacError, match="bucket size"):
        row_length((4,), rows)


def test_scales_must_fit_the_rows() -> None:
    with pytest.raises(EsnacError, match=r"\(2, 1\)"):
        Codes(
            torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2), torch.ones(1, 1), None, "channel"
        )
