# SPDX-License-Identifier: Apache-2.0
"""Rows at scattered positions on a real GPU against the oracle."""

from __future__ import annotations

import random

import pytest

from redknot_sglang.kernels.batch import HeadClass
from redknot_sglang.kernels.triton_path import TritonPath
from tests.gpu.test_kernels import PREFIXES, WINDOWS, assert_near, gpu_spec
from tests.kernels.cases import make_case, scatter

pytestmark = pytest.mark.gpu

CLASSES: tuple[HeadClass, ...] = ("global", "local")
ROWS = [1, 300, 2, 40, 1, 2000, 513, 1]


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
@pytest.mark.parametrize(("head_dim", "group"), [(128, 4), (128, 8), (64, 4), (256, 8)])
def test_scattered_rows(head_dim: int, group: int, share: float) -> None:
    rng = random.Random(f"{head_dim} {group} {share}")
    for window, sink in WINDOWS:
        spec = gpu_spec(head_dim, group, window, sink)
        case = make_case(spec, PREFIXES, ROWS)
        batch = scatter(case, [sorted(rng.sample(range(n), max(1, int(n * share)))) for n in ROWS])
        path = TritonPath(spec)
        path.plan_extend(batch)
        for head_class in CLASSES:
            want, _ = case.expected(batch, head_class)
            assert_near(case.run(path, head_class), want)
