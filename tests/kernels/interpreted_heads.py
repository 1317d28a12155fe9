# SPDX-License-Identifier: Apache-2.0
"""The kernels that move heads, on the CPU by Triton's interpreter; collected by test_triton_interpreted.py alone."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels import move_heads
from redknot_sglang.kernels.triton_heads import launch_put, launch_split
from tests.kernels.heads_cases import LAYERS, check_put, check_split
from tests.kernels.interpreter_rounding import round_as_a_gpu_does

POOLS = [
    (torch.float32, (1.0, 1.0)),
    (torch.float16, (1.0, 1.0)),
    (torch.float8_e4m3fn, (0.3, 1.7)),
    (torch.float8_e5m2, (1.0, 2.0)),
]


@pytest.mark.parametrize(("pool_dtype", "scales"), POOLS)
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("layer", LAYERS)
def test_split(
    layer: str, rows: int, pool_dtype: torch.dtype, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    round_as_a_gpu_does(monkeypatch)
    monkeypatch.setattr(move_heads, "split_heads", launch_split)
    check_split(layer, rows, head_dim=24, pool_dtype=pool_dtype, scales=scales)


@pytest.mark.parametrize("rows", [1, 37])
def test_put(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move_heads, "put_heads", lambda part, target: launch_put(part, target.out, target.heads))
    check_put(rows, head_dim=24)
