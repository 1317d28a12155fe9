# SPDX-License-Identifier: Apache-2.0
"""The kernel of document sums on a GPU."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.reuse.question import sums_by_kernel, sums_by_torch
from tests.kernels.document_sums_cases import SHAPES, check
from tests.reuse.test_question import make

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("head_dim", "rows", "sizes", "dtype"), SHAPES)
def test_sums(head_dim: int, rows: int, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    check(head_dim, rows, sizes, dtype, "cuda")


def test_a_choice_has_the_sums_of_the_cpu() -> None:
    pool, _, documents, text = make(3, "cuda")
    q = torch.randn(len(text.slots), len(pool.asked.heads), pool.asked.rows.shape[2], device="cuda")
    torch.testing.assert_close(sums_by_kernel(pool, documents, q), sums_by_torch(pool, documents, q))
