# SPDX-License-Identifier: Apache-2.0
"""Relocation by torch against complex arithmetic in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.kernels.relocate import Rotation
from tests.kernels.relocation_cases import SHAPES, check, make_case, plain_table


@pytest.mark.parametrize(("head_dim", "rotary_dim", "is_neox", "dtype", "magnitude"), SHAPES)
def test_moves_and_turns(head_dim: int, rotary_dim: int, is_neox: bool, dtype: torch.dtype, magnitude: float) -> None:
    check(make_case(head_dim, rotary_dim, is_neox, dtype, magnitude))


def test_nothing_to_move() -> None:
    # All rows are "others", which must stay.
    check(make_case(rows=0))


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 4095)), min_size=1, max_size=8))
def test_turns_are_unit_rotations_whatever_the_magnitude(pairs: list[tuple[int, int]]) -> None:
    origin, position = torch.tensor(pairs).t()
    cos, sin = Rotation(plain_table(32, magnitude=0.3), True).turn(origin, position)
    torch.testing.assert_close(torch.hypot(cos, sin), torch.ones_like(cos), rtol=1e-6, atol=1e-6)
    frequency = 1e4 ** (-torch.arange(0, 32, 2).double() / 32)
    angle = (position - origin).double()[:, None] * frequency
    torch.testing.assert_close(cos.double(), angle.cos(), rtol=0, atol=2e-6)
    torch.testing.assert_close(sin.double(), angle.sin(), rtol=0, atol=2e-6)
