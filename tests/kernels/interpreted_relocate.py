# SPDX-License-Identifier: Apache-2.0
"""The relocation kernel on the CPU, by Triton's interpreter; collected by test_triton_interpreted.py alone."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels import relocate
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.kernels.triton_relocate import launch_relocate, launch_turn
from tests.kernels.interpreter_rounding import round_as_a_gpu_does
from tests.kernels.relocation_cases import SHAPES, check, make_case


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "is_neox", "dtype", "magnitude"), [s for s in SHAPES if s[3] != torch.bfloat16]
)
def test_kernel_moves_and_turns(
    head_dim: int, rotary_dim: int, is_neox: bool, dtype: torch.dtype, magnitude: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_as_a_gpu_does(monkeypatch)
    monkeypatch.setattr(relocate, "relocate_torch", launch_relocate)
    monkeypatch.setattr(Rotation, "turn_torch", lambda self, *positions: launch_turn(self.table, *positions))
    check(make_case(head_dim, rotary_dim, is_neox, dtype, magnitude))
