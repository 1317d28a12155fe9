# SPDX-License-Identifier: Apache-2.0
"""Causal attention of the last rows against the oracle."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels.causal import causal_attention
from redknot_sglang.kernels.reference import attend


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 40), (40, 40), (25, 40), (17, 33)])
@pytest.mark.parametrize("group", [1, 4])
def test_last_rows_see_everything_up_to_themselves(rows: int, length: int, group: int) -> None:
    torch.manual_seed(length)
    q, k, v = torch.randn(rows, 2 * group, 8), torch.randn(length, 2, 8), torch.randn(length, 2, 8)
    at = torch.arange(length)
    wanted, _ = attend(q, k, v, at[-rows:], at, torch.ones(2, dtype=torch.bool), 1, 0, 0.3)
    assert torch.allclose(causal_attention(q, k, v, 0.3), wanted, atol=1e-5)
