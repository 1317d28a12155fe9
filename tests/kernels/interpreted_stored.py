# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels over pools of 8-bit floats, by Triton's interpreter; collected by test_triton_interpreted.py alone."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES
from redknot_sglang.kernels.decode_triton import TritonDecode
from redknot_sglang.kernels.extend_triton import TritonExtend
from redknot_sglang.kernels.stored import FP8
from tests.kernels.cases import make_case, make_spec


@pytest.mark.parametrize("stored", FP8)
def test_extend_over_pools_with_scales(stored: torch.dtype) -> None:
    """Whole tiles, and one in parts."""
    scales = 0.5, 3.0
    case = make_case(make_spec(group=3, head_dim=24, n_local=1, window=16, sink=4), [0, 3, 400], [25, 1, 5])
    case.store_as(stored)
    path = TritonExtend(case.spec, 8)
    path.plan_extend(case.extend)
    assert path.work["global", 1].parts > 1
    for head_class in CLASSES:
        want = case.expected(case.extend, head_class, scales)[0]
        for run in (case.run, case.run_to_targets):
            torch.testing.assert_close(run(path, head_class, scales=scales), want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("stored", FP8)
def test_decode_over_pools_with_scales(stored: torch.dtype) -> None:
    scales = 0.5, 3.0
    case = make_case(make_spec(group=2, head_dim=24, window=70, sink=3), [0, 68, 250], [1, 1, 1])
    case.store_as(stored)
    path = TritonDecode(case.spec)
    path.plan_decode(case.decode)
    for head_class in CLASSES:
        want = case.expected(case.decode, head_class, scales)[0]
        torch.testing.assert_close(case.run(path, head_class, scales), want, atol=2e-5, rtol=1e-5)


def test_half_precision_queries_over_pools_of_8_bits() -> None:
    case = make_case(make_spec(group=4, dtype=torch.float16), [0, 90], [20, 9])
    case.store_as(torch.float8_e4m3fn)
    path = TritonExtend(case.spec)
    path.plan_extend(case.extend)
    for head_class in CLASSES:
        want = case.expected(case.extend, head_class, (0.5, 2.0))[0]
        torch.testing.assert_close(case.run(path, head_class, (0.5, 2.0)).float(), want, atol=4e-3, rtol=4e-3)
