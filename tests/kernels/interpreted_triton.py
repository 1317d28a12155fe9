# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on the CPU, by Triton's interpreter; collected by test_triton_interpreted.py alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES
from redknot_sglang.kernels.class_heads import ClassHeads, Target
from redknot_sglang.kernels.decode_triton import TritonDecode
from redknot_sglang.kernels.extend_triton import TritonExtend
from redknot_sglang.kernels.page_list import (
    ALL_PAGES,
    launch_write_pages,
    near_pages,
    sink_pages,
    window_pages,
    write_pages,
)
from redknot_sglang.kernels.sink_fold import SinksOfRows, sink_fold
from tests.kernels.cases import SCALE, make_case, make_spec, scatter


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(("window", "sink"), [(1, 0), (5, 3), (64, 4)])
def test_page_list_kernel_writes_what_torch_writes(window: int, sink: int, decode: bool) -> None:
    spec = make_spec(window=window, sink=sink)
    case = make_case(spec, [0, 3, 40, 1200], [9, 1, 7, 30])
    batch = case.extend
    prefixes = None if decode else batch.prefix_lens
    for rule in (ALL_PAGES, window_pages(spec), near_pages(spec), sink_pages(spec)):
        starts = torch.arange(4) * 1300
        tables = torch.full((2, 4 * 1300), -1, dtype=torch.int32)
        for write, table in zip((write_pages, launch_write_pages), tables, strict=True):
            write(
                rule,
                table,
                starts,
                batch.req_to_token,
                batch.req_pool_indices,
                batch.full_to_local,
                prefixes,
                batch.seq_lens,
            )
        assert torch.equal(*tables), rule


@pytest.mark.parametrize(
    ("group", "head_dim", "window", "sink", "dtype", "tolerance"),
    [
        (1, 16, 5, 0, torch.float32, 1e-5),
        (3, 24, 16, 4, torch.float32, 1e-5),
        (4, 16, 64, 4, torch.float16, 2e-3),
    ],
)
def test_extend(group: int, head_dim: int, window: int, sink: int, dtype: torch.dtype, tolerance: float) -> None:
    spec = make_spec(group=group, head_dim=head_dim, window=window, sink=sink, dtype=dtype, n_global=1, n_local=2)
    case = make_case(spec, [0, 3, 90], [41, 1, 33])
    path = TritonExtend(spec)
    path.plan_extend(case.extend)
    for head_class in CLASSES:
        out = case.run(path, head_class).float()
        torch.testing.assert_close(out, case.expected(case.extend, head_class)[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("group", "window", "sink"), [(1, 5, 0), (3, 16, 4), (4, 64, 4)])
def test_scattered_rows(group: int, window: int, sink: int) -> None:
    spec = make_spec(group=group, head_dim=24, window=window, sink=sink)
    case = make_case(spec, [0, 3, 90], [200, 1, 60])
    batch = scatter(case, [[0, 1, *range(5, 200, 7)], [0], [2, 3, 4, 59]])
    path = TritonExtend(spec)
    path.plan_extend(batch)
    for head_class in CLASSES:
        expected = case.expected(batch, head_class)[0]
        torch.testing.assert_close(case.run(path, head_class), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize(("group", "sink"), [(1, 0), (5, 4), (2, 1)])
def test_decode(group: int, sink: int, splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redknot_sglang.kernels.decode_triton.splits_for", lambda *_: splits)
    spec = make_spec(group=group, head_dim=24, window=70, sink=sink)
    case = make_case(spec, [0, 68, 90, 250], [1, 1, 1, 1])
    path = TritonDecode(spec)
    path.plan_decode(case.decode)
    for head_class in CLASSES:
        torch.testing.assert_close(
            case.run(path, head_class),
            case.expected(case.decode, head_class)[0],
            atol=1e-5,
            rtol=1e-5,
        )


def test_graph_plan_follows_the_batch_in_fixed_buffers() -> None:
    spec = make_spec(window=20, sink=2)
    path = TritonDecode(spec)
    path.init_graph(max_bs=4, max_context=300)
    places = set()
    for seed, lens in enumerate(([0, 5, 250], [40, 19, 20], [299, 0, 21])):
        case = make_case(spec, lens, [1, 1, 1], seed)
        path.plan_graph(case.decode)
        for head_class in CLASSES:
            torch.testing.assert_close(
                case.run(path, head_class), case.expected(case.decode, head_class)[0], atol=1e-5, rtol=1e-5
            )
        planned = path.planned
        assert planned is not None
        places.add((planned.seq_lens.data_ptr(), planned.near.data_ptr(), planned.req_pool_indices.data_ptr()))
    assert len(places) == 1, "a captured graph would read stale buffers"


@pytest.mark.parametrize("lse_base", ["e", "2"])
@pytest.mark.parametrize("lse_layout", ["heads_rows", "rows_heads"])
@pytest.mark.parametrize(("group", "sink"), [(3, 4), (2, 4), (2, 21)])
def test_sink_fold_completes_a_window(
    lse_base: Literal["e", "2"],
    lse_layout: Literal["heads_rows", "rows_heads"],
    group: int,
    sink: int,
) -> None:
    spec = make_spec(group=group, head_dim=24, window=12, sink=sink)
    case = make_case(spec, [0, 9, 60, 0], [30, 20, 17, 2])
    batch = case.extend
    window_only = replace(case, spec=replace(spec, sink=0))
    out, lse = window_only.expected(batch, "local")
    lse = lse / torch.log(torch.tensor(2.0)) if lse_base == "2" else lse
    lse = lse.T.contiguous() if lse_layout == "heads_rows" else lse
    sinks = SinksOfRows.of(batch, spec)
    assert sinks is not None
    pools = case.q["local"], case.k["local"], case.v["local"]
    wanted = case.expected(batch, "local")[0]
    heads = pools[1].shape[1]
    target = Target(
        out.new_full((len(out), 2 * heads * group, 24), 7.0),
        ClassHeads.of(range(1, 2 * heads, 2), group, torch.device("cpu")),
    )
    sink_fold(out, lse, lse_layout, lse_base, *pools, sinks, 12, SCALE, target)
    torch.testing.assert_close(target.out[:, target.heads.query], wanted, atol=1e-5, rtol=1e-5)
    assert bool((target.out[:, :group] == 7.0).all())
    sink_fold(out, lse, lse_layout, lse_base, *pools, sinks, 12, SCALE)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
