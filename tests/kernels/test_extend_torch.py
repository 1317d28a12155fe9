# SPDX-License-Identifier: Apache-2.0
"""The torch extend path against the oracle, over random batches, chunkings and batch compositions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redknot_sglang.kernels.batch import CLASSES
from redknot_sglang.kernels.extend_torch import TorchExtend
from tests.kernels.cases import Case, make_case, make_spec, scatter
from tests.kernels.random_cases import SCALES, cases, check


@settings(deadline=None, max_examples=60)
@given(cases(decode=False), SCALES)
def test_extend_equals_the_oracle(case: Case, scales: tuple[float, float]) -> None:
    path = TorchExtend(case.spec)
    path.plan_extend(case.extend)
    check(case, case.extend, path, scales)


@settings(deadline=None, max_examples=60)
@given(cases(decode=False), st.randoms(use_true_random=False), SCALES)
def test_scattered_rows_equal_the_oracle(case: Case, rng: random.Random, scales: tuple[float, float]) -> None:
    path, share = TorchExtend(case.spec), rng.choice([0.02, 0.3, 1.0])
    batch = scatter(case, [sorted(rng.sample(range(n), max(1, int(n * share)))) for n in case.extend.qo_lens])
    path.plan_extend(batch)
    check(case, batch, path, scales)


def test_a_path_is_planned_again_for_longer_prefixes() -> None:
    spec = make_spec(window=40, sink=3)
    path = TorchExtend(spec)
    for prefix in (5, 3000, 200):
        case = make_case(spec, [prefix], [300], seed=prefix)
        path.plan_extend(case.extend)
        check(case, case.extend, path)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 300),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
    st.sampled_from([1, 16, 90]),
    st.integers(0, 4),
)
def test_neither_chunks_nor_neighbours_change_a_row(prefix: int, chunks: list[int], window: int, sink: int) -> None:
    """The same rows in one extend, in chunks, beside other requests and alone."""
    spec = make_spec(window=window, sink=sink)
    case = make_case(spec, [prefix, 40, 0], [sum(chunks), 30, 3])
    whole = TorchExtend(spec)
    whole.plan_extend(case.extend)
    results = {c: case.run(whole, c) for c in CLASSES}
    start, row = prefix, 0
    for n in chunks:
        chunk = replace(
            case.extend,
            req_pool_indices=case.extend.req_pool_indices[:1],
            prefix_lens_cpu=[start],
            seq_lens_cpu=[start + n],
        )
        path = TorchExtend(spec)
        path.plan_extend(chunk)
        for head_class in CLASSES:
            pools = case.k[head_class], case.v[head_class]
            alone = path.run(head_class, case.q[head_class][row : row + n], *pools, 0.3)
            torch.testing.assert_close(alone, results[head_class][row : row + n], atol=1e-5, rtol=1e-5)
        start, row = start + n, row + n


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16])
def test_pools_of_another_dtype(stored: torch.dtype) -> None:
    spec = make_spec(window=20, dtype=torch.bfloat16)
    case = make_case(spec, [0, 90], [40, 7])
    case.store_as(stored)
    path = TorchExtend(replace(spec, global_kv_dtype=stored, local_kv_dtype=stored))
    path.plan_extend(case.extend)
    check(case, case.extend, path, (0.5, 3.0))


def test_a_target_is_written() -> None:
    case = make_case(make_spec(), [0, 30], [5, 2])
    path = TorchExtend(case.spec)
    path.plan_extend(case.extend)
    for head_class in CLASSES:
        assert torch.equal(case.run_to_targets(path, head_class), case.run(path, head_class))


def test_another_number_of_rows_is_told() -> None:
    case = make_case(make_spec(), [0], [4])
    path = TorchExtend(case.spec)
    path.plan_extend(case.extend)
    case.q["global"] = case.q["global"][:3]
    with pytest.raises(ValueError, match="3 rows, the latest plan has 4"):
        case.run(path, "global")
