# SPDX-License-Identifier: Apache-2.0
"""The kernels that move heads, on the GPU."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.heads_cases import LAYERS, check_put, check_split

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("layer", LAYERS)
def test_split(layer: str, rows: int) -> None:
    for head_dim in (64, 96, 128):
        check_split(layer, rows, head_dim, torch.bfloat16, "cuda")


@pytest.mark.parametrize("rows", [1, 1000])
def test_put(rows: int) -> None:
    check_put(rows, 128, "cuda")
