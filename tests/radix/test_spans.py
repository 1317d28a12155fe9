# SPDX-License-Identifier: Apache-2.0
"""Spans against sets of positions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.radix.spans import Spans, clip, gaps, kept_local, union

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
    merged, inside = union(spans), set(range(start, end))
    assert positions(clip(merged, start, end)) == positions(merged) & inside
    assert positions(gaps(merged, start, end)) == inside - positions(merged)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 80))
def test_kept_local_is_what_the_next_row_reads(length: int, window: int, sink: int, branch: int) -> None:
    kept = positions(kept_local(length, window, sink, branch))
    assert kept <= set(range(length))
    for boundary in (length, min(branch, length)):
        seen = {p for p in range(boundary) if p > boundary - window or p < sink}
        assert seen <= kept
