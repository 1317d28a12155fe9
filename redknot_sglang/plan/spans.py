# SPDX-License-Identifier: Apache-2.0
"""Spans of positions, as pure functions.

A span (start, end) holds the positions from `start` up to, but not including, `end`. `Spans` are sorted and do not
overlap. A prompt may have many segments, so nothing here takes time that grows with the square of their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]
Span = tuple[int, int]
Spans = list[Span]


def union(spans: Iterable[Span]) -> Spans:
    """The positions of any spans as sorted spans: those that overlap or touch are joined, and empty ones are left out."""
    merged: Spans = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def clip(spans: Spans, start: int, end: int) -> Spans:
    """What the spans have in common with [start, end)."""
    return [(max(a, start), min(b, end)) for a, b in spans if max(a, start) < min(b, end)]


def gaps(spans: Spans, start: int, end: int) -> Spans:
    """What is left of [start, end) outside the spans."""
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
    """All positions in the spans, ascending: int64 [n]."""
    starts, ends = _columns(spans)
    lengths = ends - starts
    return np.arange(lengths.sum()) + np.repeat(starts - (lengths.cumsum() - lengths), lengths)


def spans_of(positions: Positions) -> Spans:
    """Positions as spans, adjacent ones joined.

    positions: int64 [n], ascending.
    """
    starts, ends = runs_of(positions)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def runs_of(positions: Positions) -> tuple[Positions, Positions]:
    """Runs of adjacent positions, as two arrays of their starts and ends: int64 [runs] each.

    positions: int64 [n], ascending.
    """
    if not len(positions):
        return positions, positions
    breaks = np.flatnonzero(np.diff(positions) != 1)
    return positions[np.r_[0, breaks + 1]], positions[np.r_[breaks, len(positions) - 1]] + 1


def inside(positions: Positions, spans: Sequence[Span]) -> Flags:
    """Which positions lie in one of the spans: bool [n].

    positions: int64 [n], ascending. Time and memory grow with the distance from the first to the last, so they should
        lie close together.
    spans: in any order; no two overlap.
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
    """Positions of a sequence whose local KV is worth keeping in the tree.

    Local heads see the first S tokens (the sink) and the last W (the window). So the sink is kept, and one window
    before each place from which another request is likely to go on.

    length: tokens of the sequence. A next turn goes on from its end.
    window: W in tokens.
    sink: S in tokens.
    branch: a position up to which an earlier request had the same tokens; a third request may have them, too. 0 if
        there is none.
    """
    ends = (length, min(branch, length))
    return union([(0, min(sink, length)), *((max(0, end - window), end) for end in ends)])
