# SPDX-License-Identifier: Apache-2.0
"""Extends whose tiles are split over programs, by Triton's interpreter; collected by test_triton_interpreted.py alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES, ExtendBatch, HeadClass
from redknot_sglang.kernels.device_work import Tiling
from redknot_sglang.kernels.extend_triton import TritonExtend
from tests.kernels.cases import Case, make_case, make_spec, scatter

FULL = pytest.mark.full
# Small, so that a few hundred keys are many steps.
TILING = Tiling(packed=32, keys=16, warps=4, stages=2)
# The interpreter multiplies the bits of bfloat16 as integers; on a GPU tests/gpu/test_scattered.py has it.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def check(case: Case, batch: ExtendBatch, processors: int, tiling: Tiling | None = TILING) -> int:
    """The global class against the oracle; returns how many parts were merged."""
    spec, tolerance = case.spec, TOLERANCE[case.spec.dtype]
    path = TritonExtend(spec, processors, tiling)
    path.plan_extend(batch)
    want, _ = case.expected(batch, "global")
    torch.testing.assert_close(case.run(path, "global").float(), want, atol=tolerance, rtol=tolerance)
    assert path.work["local", spec.local_widths[0]].parts == 0
    return path.work["global", spec.global_widths[0]].parts


@pytest.mark.parametrize("group", [1, 3, *(pytest.param(group, marks=FULL) for group in (2, 4, 8))])
def test_requests_of_uneven_rows(group: int) -> None:
    """A request with rows at either end of its keys, one with a single row, one with few keys, adjacent rows."""
    spec = make_spec(group=group, head_dim=24, n_global=2, n_local=1, window=20)
    case = make_case(spec, [0, 700, 5, 301], [650, 1, 3, 20], seed=group)
    rows = [[0, 1, 2, 130, 131, *range(300, 650, 61)], [0], [0, 2], list(range(20))]
    assert check(case, scatter(case, rows), processors=60) >= 8


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("group", "head_dim"), [(1, 128), (4, 64), pytest.param(8, 128, marks=FULL), pytest.param(2, 64, marks=FULL)]
)
def test_shapes_of_models(group: int, head_dim: int, dtype: torch.dtype) -> None:
    """With the tiling that serves."""
    spec = make_spec(group=group, head_dim=head_dim, n_global=1, n_local=1, window=64, dtype=dtype)
    case = make_case(spec, [0, 1100], [1300, 2], seed=1)
    rng = random.Random(0)
    batch = scatter(case, [sorted(rng.sample(range(1300), 50)), [0, 1]])
    assert check(case, batch, processors=20, tiling=None) >= 2


def test_adjacent_rows() -> None:
    """The tail of a long prompt, beside a short request."""
    case = make_case(make_spec(group=4, window=16), [1000, 3], [21, 5])
    assert check(case, case.extend, processors=16) >= 8


def test_a_part_that_some_rows_do_not_see() -> None:
    """One tile whose rows lie far apart: the parts at the end are behind all rows but the last."""
    case = make_case(make_spec(group=1, window=16), [0], [1200])
    assert check(case, scatter(case, [[0, 1, 600, 1199]]), processors=8) == 8


def test_parts_that_end_inside_the_common_keys_and_behind_them() -> None:
    """The lowest row stands at each place of a step, at its ends in particular."""
    for low in (511, 512, 513, 527, 528):
        case = make_case(make_spec(group=2, window=16), [low], [100], seed=low)
        assert check(case, scatter(case, [[0, 40, 99]]), processors=4) == 4


@pytest.mark.parametrize("no", CLASSES)
def test_one_class_alone(no: HeadClass) -> None:
    spec = make_spec(group=2, window=16)
    case = make_case(spec, [600], [30])
    batch = scatter(case, [[0, 9, 29]])
    one = replace(spec, local_widths=()) if no == "local" else replace(spec, global_widths=())
    path = TritonExtend(one, 8, TILING)
    path.plan_extend(batch)
    head_class: HeadClass = "global" if no == "local" else "local"
    want, _ = case.expected(batch, head_class)
    torch.testing.assert_close(case.run(path, head_class), want, atol=1e-5, rtol=1e-5)


def test_several_widths_have_work_of_their_own() -> None:
    """Layers differ in their number of global heads; fewer heads are split further."""
    parts = []
    for width in (1, 4):
        spec = replace(make_spec(group=2, n_global=width, window=16), global_widths=(4, 1))
        case = make_case(replace(spec, global_widths=(width,)), [1000], [30])
        batch = scatter(case, [[0, 9, 29]])
        path = TritonExtend(spec, 8, TILING)
        path.plan_extend(batch)
        want, _ = case.expected(batch, "global")
        torch.testing.assert_close(case.run(path, "global"), want, atol=1e-5, rtol=1e-5)
        parts.append(path.work["global", width].parts)
    assert parts[0] > parts[1] > 0


def test_a_scale_that_turns_logits_around_is_told() -> None:
    case = make_case(make_spec(), [0], [4])
    path = TritonExtend(case.spec)
    path.plan_extend(case.extend)
    with pytest.raises(ValueError, match="scale is -1.0"):
        path.run("global", case.q["global"], case.k["global"], case.v["global"], -1.0)


@pytest.mark.parametrize(("n_global", "sink"), [(1, 3), pytest.param(2, 0, marks=FULL)])
def test_one_prefill_graph_serves_batches_of_all_kinds(n_global: int, sink: int) -> None:
    """Adjacent and scattered rows, split and whole tiles, in the same buffers; rows behind the batch come out as zeros."""
    spec = make_spec(group=2, head_dim=16, n_global=n_global, n_local=1, window=20, sink=sink)
    path = TritonExtend(spec, processors=8, tiling=Tiling(16, 16, 4, 1))
    # Each request that there is room for is many programs, which end at once, but not in the interpreter.
    path.init_extend_graphs(max_rows=64, max_context=600, max_runs=4)
    places = set()
    cases: list[tuple[list[int], list[int], list[list[int]] | None, int]] = [
        ([0], [32], None, 32),
        ([500, 0, 40], [5, 9, 12], None, 32),
        ([3], [1], None, 32),
        ([0, 3, 90], [400, 1, 60], [[0, 1, *range(5, 400, 17)], [0], [2, 3, 4, 59]], 32),
        ([560, 19], [30, 4], None, 64),
    ]
    for seed, (prefixes, rows, scattered, graph) in enumerate(cases):
        case = make_case(spec, prefixes, rows, seed)
        batch = case.extend if scattered is None else scatter(case, scattered)
        assert path.plan_extend_graph(batch, graph)
        n = batch.qo_indptr[-1]
        work = [path.work[key] for key in sorted(path.work)]
        places.add(
            tuple(x.data_ptr() for one in work for x in (one.items, one.merges, one.positions) if x is not None)
            + tuple(x.data_ptr() for pages in path.pages["local"] for x in (pages,))
        )
        for head_class in CLASSES:
            want = case.expected(batch, head_class)[0]
            q = case.q[head_class]
            case.q[head_class] = torch.cat([q, q.new_full((graph - n, *q.shape[1:]), torch.nan)])
            out = case.run(path, head_class)
            torch.testing.assert_close(out[:n], want, atol=1e-5, rtol=1e-5)
            assert not out[n:].any()
    assert len(places) == 1, "a recorded graph would read stale buffers"


def test_a_decode_graph_verifies_drafts_of_more_requests() -> None:
    spec = make_spec(group=2, head_dim=16, n_local=1, window=20, sink=2)
    path = TritonExtend(spec, processors=8, tiling=Tiling(16, 16, 4, 1))
    path.init_extend_graphs(max_rows=66 * 2, max_context=64, max_runs=66)
    for seed, count in enumerate((66, 2)):
        # The last requests fill the graph's batch up: one token before the draft.
        case = make_case(spec, [(7 * at) % 30 if at < count - 1 else 1 for at in range(count)], [2] * count, seed)
        assert path.plan_extend_graph(case.extend, 2 * count)
        for head_class in CLASSES:
            want, _ = case.expected(case.extend, head_class)
            torch.testing.assert_close(case.run(path, head_class), want, atol=1e-5, rtol=1e-5)


def test_what_no_prefill_graph_can_serve() -> None:
    spec = make_spec(window=20, sink=2)
    path = TritonExtend(spec)
    fits = make_case(spec, [30], [4]).extend
    assert not path.plan_extend_graph(fits, 32), "nothing is reserved yet"
    path.init_extend_graphs(max_rows=32, max_context=60)
    assert path.plan_extend_graph(fits, 32) and not path.plan_extend_graph(fits, 64)
    for prefixes, rows in (([0], [33]), ([60], [4]), ([0] * 65, [1] * 65)):
        assert not path.plan_extend_graph(make_case(spec, prefixes, rows).extend, 32)
