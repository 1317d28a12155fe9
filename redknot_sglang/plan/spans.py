# SPDX-License-Identifier: Apache-2.0
"""Spans of positions, as pure functions.

A span is a pair (start, end) without its end; `Spans` are sorted and do not overlap. A prompt may have many
segments, so nothing here takes time that grows with the square of their number.
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
    """Any spans, sorted; those that overlap or touch are joined, and empty ones left out."""
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
    """As `spans_of`, but as two arrays, the starts and the ends: int64 [runs] each."""
    if not len(positions):
        return positions, positions
    breaks = np.flatnonzero(np.diff(positions) != 1)
    return positions[np.r_[0, breaks + 1]], positions[np.r_[breaks, len(positions) - 1]] + 1


def inside(positions: Positions, spans: Sequence[Span]) -> Flags:
    """Which positions lie in one of the spans: bool [n].

    positions: int64 [n], ascending. Time and memory are those of all positions from the first to the last, so most of
        those should be in it.
    spans: disjoint.
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
    """Positions of a sequence whose local slots are worth keeping in the tree: sink, and tails where others may go on.

    length: tokens of the sequence; one window before its end is kept, since a next turn goes on there.
    window: W in tokens.
    sink: S in tokens.
    branch: a position up to which an earlier request had the same tokens; one window before it is kept, because a third
        request may have them, too. 0 if none is known.
    """
    ends = (length, min(branch, length))
    return union([(0, min(sink, length)), *((max(0, end - window), end) for end in ends)])
