# SPDX-License-Identifier: Apache-2.0
"""The kernel of document sums on the CPU, by Triton's interpreter; collected by test_triton_interpreted.py alone."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.document_sums_cases import SHAPES, check


@pytest.mark.parametrize(("head_dim", "rows", "sizes", "dtype"), [s for s in SHAPES if s[3] != torch.bfloat16])
def test_sums(head_dim: int, rows: int, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    check(head_dim, rows, sizes, dtype, "cpu")
