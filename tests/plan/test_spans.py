# SPDX-License-Identifier: Apache-2.0
"""Spans against sets of positions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.plan.spans import Spans, clip, gaps, inside, kept_local, positions_of, spans_of, union

span_lists = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)


def positions(spans: Spans) -> set[int]:
    return {p for start, end in spans for p in range(start, end)}


@given(span_lists)
def test_union_is_sorted_disjoint_and_complete(spans: Spans) -> None:
    merged = union(spans)
    assert positions(merged) == positions(spans)
    assert all(a[1] < b[0] for a, b in zip(merged, merged[1:], strict=False))


@given(span_lists, st.integers(0, 40), st.integers(0, 40))
def test_clip_and_gaps_divide_a_range(spans: Spans, start: int, end: int) -> None:
    merged, whole = union(spans), set(range(start, end))
    assert positions(clip(merged, start, end)) == positions(merged) & whole
    assert positions(gaps(merged, start, end)) == whole - positions(merged)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 80))
def test_kept_local_is_what_the_next_row_reads(length: int, window: int, sink: int, branch: int) -> None:
    kept = positions(kept_local(length, window, sink, branch))
    assert kept <= set(range(length))
    for boundary in (length, min(branch, length)):
        seen = {p for p in range(boundary) if p > boundary - window or p < sink}
        assert seen <= kept


@given(span_lists, st.integers(0, 40))
def test_positions_and_spans_are_inverse(spans: Spans, offset: int) -> None:
    spans = [span for span in spans if span[0] < span[1]]
    merged = union(spans)
    assert positions_of(spans).tolist() == [p for start, end in spans for p in range(start, end)]
    assert spans_of(positions_of(merged)) == merged
    for at in (np.arange(offset, 45), np.arange(offset, 45, 7), np.arange(0)):
        assert inside(at, merged).tolist() == [p in positions(merged) for p in at.tolist()]
