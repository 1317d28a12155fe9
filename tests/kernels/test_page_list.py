# SPDX-License-Identifier: Apache-2.0
"""Page lists against their definition; the Triton kernel is held to these in interpreted_triton.py."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redknot_sglang.kernels.batch import offsets
from redknot_sglang.kernels.page_list import (
    ALL_PAGES,
    near_pages,
    sink_pages,
    window_pages,
    write_pages,
)
from tests.kernels.cases import make_case, make_spec

REQUESTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=80)
@given(REQUESTS, st.integers(1, 25), st.integers(0, 6), st.booleans())
def test_lists_hold_the_positions_of_their_rule(
    requests: list[tuple[int, int]], window: int, sink: int, decode: bool
) -> None:
    spec = make_spec(window=window, sink=sink)
    batch = make_case(spec, [p for p, _ in requests], [n for _, n in requests]).extend
    prefixes = [n - 1 for n in batch.seq_lens_cpu] if decode else batch.prefix_lens_cpu

    def positions(rule_name: str, prefix: int, n: int) -> list[int]:
        near = [p for p in range(n) if p > prefix - window]
        return {
            "all": list(range(n)),
            "window": near,
            "near": [p for p in range(n) if p in near or p < sink],
            "sinks": list(range(min(n, sink))) if sink else list(range(n)),
        }[rule_name]

    rules = {
        "all": ALL_PAGES,
        "window": window_pages(spec),
        "near": near_pages(spec),
        "sinks": sink_pages(spec),
    }
    for name, rule in rules.items():
        want = [positions(name, p, n) for p, n in zip(prefixes, batch.seq_lens_cpu, strict=True)]
        assert [rule.count(p, n) for p, n in zip(prefixes, batch.seq_lens_cpu, strict=True)] == list(map(len, want))
        starts = torch.tensor(offsets(list(map(len, want))))
        out = torch.full((int(starts[-1]) + 3,), -1, dtype=torch.int32)
        write_pages(
            rule,
            out,
            starts,
            batch.req_to_token,
            batch.req_pool_indices,
            batch.full_to_local,
            None if decode else batch.prefix_lens,
            batch.seq_lens,
        )
        expected = []
        for request, own in zip(batch.req_pool_indices.tolist(), want, strict=True):
            slots = batch.req_to_token[request, own].long()
            expected += (batch.full_to_local[slots] if rule.local else slots).tolist()
        assert out.tolist() == [*expected, -1, -1, -1], name
