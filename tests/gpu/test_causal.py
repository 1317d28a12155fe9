# SPDX-License-Identifier: Apache-2.0
"""Causal attention of the last rows on a GPU, by torch's fused kernels, against the oracle."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels.causal import causal_attention
from redknot_sglang.kernels.reference import attend

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("rows", "length"), [(1, 300), (700, 700), (517, 1000)])
def test_last_rows_see_everything_up_to_themselves(rows: int, length: int, dim: int) -> None:
    torch.manual_seed(rows)
    shapes = (rows, 8, dim), (length, 2, dim), (length, 2, dim)
    q, k, v = (torch.randn(shape, device="cuda").bfloat16() for shape in shapes)
    at = torch.arange(length, device="cuda")
    wanted, _ = attend(q, k, v, at[-rows:], at, torch.ones(2, dtype=torch.bool, device="cuda"), 1, 0, dim**-0.5)
    got = causal_attention(q, k, v, dim**-0.5).float()
    assert ((got - wanted).norm() / wanted.norm()) < 1e-2
