# SPDX-License-Identifier: Apache-2.0
"""The relocation kernel on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.relocation_cases import SHAPES, check, make_case

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("head_dim", "rotary_dim", "is_neox", "dtype", "magnitude"), SHAPES)
@pytest.mark.parametrize("rows", [1, 7, 31])
def test_moves_and_turns(
    head_dim: int, rotary_dim: int, is_neox: bool, dtype: torch.dtype, magnitude: float, rows: int
) -> None:
    check(make_case(head_dim, rotary_dim, is_neox, dtype, magnitude, rows), "cuda")
