# SPDX-License-Identifier: Apache-2.0
"""What pools of 8-bit floats hold of keys and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.kernels.stored import FP8, largest, loaded, movable, stored

SCALES = st.one_of(st.just(1.0), st.floats(0.01, 100.0))


@given(st.lists(st.floats(-1000.0, 1000.0, width=32), min_size=1, max_size=30), SCALES, st.sampled_from(FP8))
def test_a_number_comes_back_as_near_as_8_bits_allow(numbers: list[float], scale: float, dtype: torch.dtype) -> None:
    given_rows, bound = torch.tensor(numbers), scale * largest(dtype)
    got = loaded(stored(given_rows, dtype, scale), torch.float32, scale)
    info = torch.finfo(dtype)
    torch.testing.assert_close(
        got, given_rows.clamp(-bound, bound), rtol=info.eps / 2 + 1e-6, atol=scale * info.smallest_normal
    )
    again = loaded(stored(got, dtype, scale), torch.float32, scale)
    torch.testing.assert_close(again, got, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FP8)
def test_what_is_too_large_is_the_largest_and_no_number_stays_none(dtype: torch.dtype) -> None:
    rows = stored(torch.tensor([1e9, -1e9, torch.nan]), dtype).float()
    assert rows[:2].tolist() == [largest(dtype), -largest(dtype)] and bool(rows[2].isnan())


def test_other_dtypes_have_no_bound() -> None:
    rows = torch.tensor([1e9, 3.0])
    assert torch.equal(stored(rows, torch.float32), rows) and movable(rows) is rows


@pytest.mark.parametrize("dtype", FP8)
def test_bytes_move_by_index(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 3).to(dtype)
    movable(rows).index_copy_(0, torch.tensor([0]), movable(rows)[4:].clone())
    assert torch.equal(rows[0].float(), rows[4].float())
