# SPDX-License-Identifier: Apache-2.0
"""The torch decode path against the oracle, over random batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redknot_sglang.kernels.batch import CLASSES
from redknot_sglang.kernels.decode_torch import TorchDecode
from tests.kernels.cases import Case, make_case, make_spec
from tests.kernels.random_cases import SCALES, cases, check


@settings(deadline=None, max_examples=60)
@given(cases(decode=True), st.booleans(), SCALES)
def test_decode_equals_the_oracle(case: Case, host_lens: bool, scales: tuple[float, float]) -> None:
    path = TorchDecode(case.spec)
    batch = case.decode if host_lens else replace(case.decode, seq_lens_cpu=None)
    path.plan_decode(batch)
    check(case, batch, path, scales)


def test_decode_of_a_large_batch_equals_the_oracle() -> None:
    lens = [0, 1, 2, 5000, 300, 299, *range(10, 250, 5), 1000, 1001, 4095, 4096]
    case = make_case(make_spec(window=128, sink=4), lens, [1] * len(lens))
    path = TorchDecode(case.spec)
    path.plan_decode(case.decode)
    check(case, case.decode, path)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16])
def test_pools_of_another_dtype(stored: torch.dtype) -> None:
    spec = make_spec(window=20, dtype=torch.bfloat16)
    case = make_case(spec, [0, 90, 300], [1, 1, 1])
    case.store_as(stored)
    path = TorchDecode(replace(spec, global_kv_dtype=stored, local_kv_dtype=stored))
    path.plan_decode(case.decode)
    check(case, case.decode, path, (0.5, 3.0))


def test_a_target_is_written() -> None:
    case = make_case(make_spec(), [0, 30], [1, 1])
    path = TorchDecode(case.spec)
    path.plan_decode(case.decode)
    for head_class in CLASSES:
        assert torch.equal(case.run_to_targets(path, head_class), case.run(path, head_class))


def test_there_are_no_graphs() -> None:
    case = make_case(make_spec(), [0], [1])
    path = TorchDecode(case.spec)
    with pytest.raises(RuntimeError, match="no CUDA graphs"):
        path.init_graph(4, 100)
    with pytest.raises(RuntimeError, match="no CUDA graphs"):
        path.plan_graph(case.decode)
