"""Rows copied in words of 8 bytes are the rows, and what has no such words is left as it is."""

import pytest
import torch

from rowsft.tuner.patch import words

IDS = torch.tensor([5, 0, 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [4, 8, 12, 6, 7])
def test_rows_are_taken_and_put_back(dtype, width):
    matrix = torch.randn(7, width).to(dtype)
    rows = matrix[IDS].clone()
    expected = matrix.clone()
    expected[IDS] = 2 * rows
    taken, put = torch.empty_like(rows), 2 * rows
    wide, wide_taken, wide_put = words(matrix, taken, put)
    assert (wide.dtype is torch.int64) == (width * dtype.itemsize % 8 == 0)
    torch.index_select(wide, 0, IDS, out=wide_taken)
    assert torch.equal(taken, rows)
    wide.index_copy_(0, IDS, wide_put)
    assert torch.equal(matrix, expected)


def test_a_transposed_matrix_and_one_that_starts_between_words_are_left():
    transposed = torch.randn(8, 8, dtype=torch.float32).t()
    assert words(transposed)[0] is transposed
    between = torch.randn(2 * 8 + 1, dtype=torch.float32)[1:].view(2, 8)
    assert words(between)[0] is between
    apart = torch.randn(2, 9, dtype=torch.float32)[:, :8]
    assert words(apart)[0] is apart
