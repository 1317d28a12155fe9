# SPDX-License-Identifier: Apache-2.0
"""Spans of positions: sorted, disjoint, half-open `(start, end)` pairs. Pure functions, none quadratic in the spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]
Span = tuple[int, int]
Spans = list[Span]


def union(spans: Iterable[Span]) -> Spans:
    """Sorted and merged; empty spans vanish, touching ones become one."""
    merged: Spans = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def clip(spans: Spans, start: int, end: int) -> Spans:
    """The part of `spans` inside [start, end)."""
    return [(max(a, start), min(b, end)) for a, b in spans if max(a, start) < min(b, end)]


def gaps(spans: Spans, start: int, end: int) -> Spans:
    """The part of [start, end) outside `spans`."""
    holes: Spans = []
    at = start
    for a, b in clip(spans, start, end):
        if at < a:
            holes.append((at, a))
        at = b
    if at < end:
        holes.append((at, end))
    return holes


def positions_of(spans: Sequence[Span]) -> Positions:
    """All positions of `spans`, ascending: int64 [n]."""
    starts, ends = _columns(spans)
    lengths = ends - starts
    return np.arange(lengths.sum()) + np.repeat(starts - (lengths.cumsum() - lengths), lengths)


def spans_of(positions: Positions) -> Spans:
    """Ascending positions as spans, adjacent ones joined."""
    starts, ends = runs_of(positions)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def runs_of(positions: Positions) -> tuple[Positions, Positions]:
    """Starts and ends of `spans_of`: int64 [runs] each."""
    if not len(positions):
        return positions, positions
    breaks = np.flatnonzero(np.diff(positions) != 1)
    return positions[np.r_[0, breaks + 1]], positions[np.r_[breaks, len(positions) - 1]] + 1


def inside(positions: Positions, spans: Sequence[Span]) -> Flags:
    """Which positions, ascending, lie in one of `spans`: bool [n].

    Takes time and memory for every position from the first to the last, so these should be most of them.
    """
    if not len(positions):
        return np.zeros(0, dtype=np.bool_)
    first, end = positions[0], positions[-1] + 1
    starts, ends = (column.clip(first, end) - first for column in _columns(spans))
    some = starts < ends
    # A span counts from its start to its end; disjoint ones never share either.
    steps = np.zeros(end - first + 1, dtype=np.int8)
    steps[starts[some]] += 1
    steps[ends[some]] -= 1
    covered: Flags = steps.cumsum(dtype=np.int8)[positions - first] > 0
    return covered


def _columns(spans: Sequence[Span]) -> tuple[Positions, Positions]:
    pairs = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def kept_local(length: int, window: int, sink: int, branch: int) -> Spans:
    """Positions of a sequence of `length` tokens whose local slots are worth keeping in the tree.

    The sinks [0, sink), the tail before its end, and the tail before `branch`, a position where another sequence
    left this path (0: none known).
    """
    ends = (length, min(branch, length))
    return union([(0, min(sink, length)), *((max(0, end - window), end) for end in ends)])
