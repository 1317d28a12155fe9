# SPDX-License-Identifier: Apache-2.0
"""Rows at scattered positions on a real GPU against the oracle."""

from __future__ import annotations

import random

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES
from redknot_sglang.kernels.extend_triton import TritonExtend
from tests.gpu.test_kernels import PREFIXES, WINDOWS, assert_near, gpu_spec
from tests.kernels.cases import make_case, scatter

pytestmark = pytest.mark.gpu

ROWS = [1, 300, 2, 40, 1, 2000, 513, 1]


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
@pytest.mark.parametrize(("head_dim", "group"), [(128, 4), (128, 8), (64, 4), (256, 8)])
def test_scattered_rows(head_dim: int, group: int, share: float) -> None:
    rng = random.Random(f"{head_dim} {group} {share}")
    for window, sink in WINDOWS:
        spec = gpu_spec(head_dim, group, window, sink)
        case = make_case(spec, PREFIXES, ROWS)
        batch = scatter(case, [sorted(rng.sample(range(n), max(1, int(n * share)))) for n in ROWS])
        path = TritonExtend(spec)
        path.plan_extend(batch)
        for head_class in CLASSES:
            want, _ = case.expected(batch, head_class)
            assert_near(case.run(path, head_class), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("processors", [1, 50, 1000, None])
def test_split_keys(processors: int | None, dtype: torch.dtype) -> None:
    """Keys of a tile over many programs, few, and one: the same within rounding, and twice the same to the last bit."""
    tolerance = 1e-4 if dtype == torch.float32 else 8e-3
    spec = gpu_spec(128, 4, dtype=dtype)
    case = make_case(spec, [0, 9_000, 12_000], [20_000, 1, 300], seed=3)
    rng = random.Random(3)
    rows = [sorted(rng.sample(range(20_000), 400)), [0], list(range(0, 300, 2))]
    batch = scatter(case, rows)
    path = TritonExtend(spec, processors)
    path.plan_extend(batch)
    if processors not in (1, 50):
        assert path.work["global", 2].parts > 0
    out = case.run(path, "global")
    assert_near(out, case.expected(batch, "global")[0], tolerance)
    path.plan_extend(batch)
    assert torch.equal(case.run(path, "global"), out)


def test_a_split_plan_does_not_wait_for_the_device() -> None:
    case = make_case(gpu_spec(128), [0, 700], [9_000, 40])
    batch = scatter(case, [list(range(0, 9_000, 90)), [0, 7, 39]])
    path = TritonExtend(case.spec)
    for mode in ("default", "error"):  # the first round loads kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            path.plan_extend(batch)
            case.run(path, "global")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert path.work["global", 2].parts > 0
