# SPDX-License-Identifier: Apache-2.0
"""The torch path against the oracle, over random batches, chunkings and batch compositions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redknot_sglang.kernels.batch import DecodeBatch, ExtendBatch, HeadClass
from redknot_sglang.kernels.torch_paged import TorchPath
from tests.kernels.cases import Case, make_case, make_spec, scatter

CLASSES: tuple[HeadClass, ...] = ("global", "local")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PREFIXES = st.one_of(st.integers(0, 8), st.integers(0, 700))
ROWS = st.one_of(st.integers(1, 6), st.integers(1, 600))


@st.composite
def cases(draw: st.DrawFn, decode: bool) -> Case:
    requests = draw(st.lists(st.tuples(PREFIXES, ROWS), min_size=1, max_size=5))
    spec = make_spec(
        group=draw(st.sampled_from([1, 2, 3, 8])),
        head_dim=draw(st.sampled_from([16, 24, 64])),
        n_global=draw(st.integers(1, 3)),
        n_local=draw(st.integers(1, 3)),
        window=draw(st.one_of(st.integers(1, 20), st.sampled_from([64, 128, 512]))),
        sink=draw(st.integers(0, 5)),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
    )
    prefixes, rows = map(list, zip(*requests, strict=True))
    return make_case(spec, prefixes, [1] * len(rows) if decode else rows, draw(st.integers(0, 99)))


def check(case: Case, batch: ExtendBatch | DecodeBatch, path: TorchPath) -> None:
    tolerance = TOLERANCE[case.spec.dtype]
    for head_class in CLASSES:
        out = case.run(path, head_class)
        assert out.dtype == case.spec.dtype and out.shape == case.q[head_class].shape
        want, _ = case.expected(batch, head_class)
        torch.testing.assert_close(out.float(), want, atol=tolerance, rtol=tolerance)


@settings(deadline=None, max_examples=60)
@given(cases(decode=False))
def test_extend_equals_the_oracle(case: Case) -> None:
    path = TorchPath(case.spec)
    path.plan_extend(case.extend)
    check(case, case.extend, path)


@settings(deadline=None, max_examples=60)
@given(cases(decode=False), st.randoms(use_true_random=False))
def test_scattered_rows_equal_the_oracle(case: Case, rng: random.Random) -> None:
    path, share = TorchPath(case.spec), rng.choice([0.02, 0.3, 1.0])
    batch = scatter(case, [sorted(rng.sample(range(n), max(1, int(n * share)))) for n in case.extend.qo_lens])
    path.plan_extend(batch)
    check(case, batch, path)


@settings(deadline=None, max_examples=60)
@given(cases(decode=True), st.booleans())
def test_decode_equals_the_oracle(case: Case, host_lens: bool) -> None:
    path = TorchPath(case.spec)
    batch = case.decode if host_lens else replace(case.decode, seq_lens_cpu=None)
    path.plan_decode(batch)
    check(case, batch, path)


def test_decode_of_a_large_batch_equals_the_oracle() -> None:
    lens = [0, 1, 2, 5000, 300, 299, *range(10, 250, 5), 1000, 1001, 4095, 4096]
    case = make_case(make_spec(window=128, sink=4), lens, [1] * len(lens))
    path = TorchPath(case.spec)
    path.plan_decode(case.decode)
    check(case, case.decode, path)


def test_a_path_is_planned_again_for_longer_prefixes() -> None:
    spec = make_spec(window=40, sink=3)
    path = TorchPath(spec)
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
    whole = TorchPath(spec)
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
        path = TorchPath(spec)
        path.plan_extend(chunk)
        for head_class in CLASSES:
            pools = case.k[head_class], case.v[head_class]
            alone = path.run(head_class, case.q[head_class][row : row + n], *pools, 0.3)
            torch.testing.assert_close(alone, results[head_class][row : row + n], atol=1e-5, rtol=1e-5)
        start, row = start + n, row + n


def test_wrong_use_is_told() -> None:
    case = make_case(make_spec(), [0], [4])
    path = TorchPath(case.spec)
    path.plan_extend(case.extend)
    case.q["global"] = case.q["global"][:3]
    with pytest.raises(ValueError, match="3 rows, the latest plan has 4"):
        case.run(path, "global")
    with pytest.raises(RuntimeError, match="no CUDA graphs"):
        path.init_graph(4, 100)
    with pytest.raises(RuntimeError, match="no CUDA graphs"):
        path.plan_graph(case.decode, 1, capture=True)
