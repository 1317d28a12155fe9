# SPDX-License-Identifier: Apache-2.0
"""What a segmented request reuses, relocates, repairs and computes: pure data, made before anything runs.

Positions are those of the prompt. By definition (and so whatever the cache holds):

- the KV of a segment's row is that of the segment alone, computed from position 0 (or right after the lead), moved to
  its place by relocation;
- *computed rows* are all rows outside segments and the repaired rows of segments. They go through the model at their
  true positions and see what their head class lets them see of everything before them.

Rows are arrays of positions and not spans: `blend` repairs thousands of single rows of a long prompt, and a scheduler that
walks them one by one keeps the GPU waiting.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from redknot_sglang.plan.policies.base import Policy
from redknot_sglang.plan.spans import Flags, Positions, Span, gaps, positions_of

# Marks in keys of the radix tree, far above every token id: KV behind them depends on where segments begin and end.
SEGMENT_START = 1 << 40
CONTEXT_START = 1 << 41


@dataclass(frozen=True)
class Path:
    """A span of a prompt as it is kept in the tree: computed in isolation.

    key: token ids, int64; the span's own begin at `origin`. whole: local heads keep all of its rows.
    """

    span: Span
    origin: int
    key: array[int]
    whole: bool


@dataclass(frozen=True)
class Plan:
    """A prompt's division into lead, segments and tail.

    segments: disjoint, ascending, none empty. after_lead: segments are computed after the lead, not from position 0.
    choices: repaired rows, ascending, of segments for which a policy that probes has found them.
    """

    segments: tuple[Span, ...]
    repair: Policy
    after_lead: bool = False
    choices: Mapping[Span, Positions] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> str:
        """Namespace of the request's own path in the tree; segment borders are marked in its keys."""
        return f"\0redknot {self.repair.name} {'lead' if self.after_lead else 'none'}"

    @property
    def lead(self) -> int:
        """Tokens before the first segment."""
        return self.segments[0][0]

    @property
    def tail(self) -> int:
        """Position behind the last segment: from there on all rows are computed."""
        return self.segments[-1][1]

    @property
    def origin(self) -> int:
        """Position at which a segment's isolated KV begins."""
        return self.lead if self.after_lead else 0

    def undecided(self, start: int) -> list[Span]:
        """Segments with rows at or behind `start` whose repaired rows have still to be found."""
        if not self.repair.probes:
            return []
        return [segment for segment in self.segments if segment[1] > start and segment not in self.choices]

    def choosing(self, choices: Mapping[Span, Positions]) -> Plan:
        """This plan with the repaired rows of more segments known."""
        return replace(self, choices={**self.choices, **choices})

    @cached_property
    def _kept(self) -> Flags:
        """Which positions up to the last segment's end are relocated and not computed."""
        repaired = [positions_of([span for segment in self.segments for span in self.repair.repaired(*segment)])]
        # Until the choice is made, and behind it, nothing looks at what an undecided segment repairs.
        repaired += [self.choices[segment] for segment in self.segments if segment in self.choices]
        kept = np.zeros(self.tail, dtype=np.bool_)
        for start, end in self.segments:
            kept[start:end] = True
        for rows in repaired:
            kept[rows] = False
        return kept

    @cached_property
    def reused(self) -> Positions:
        """Positions that are relocated and not computed, ascending: int64 [n]."""
        return np.flatnonzero(self._kept)

    def reuses(self, start: int) -> bool:
        """Whether some position at or behind `start` is relocated."""
        return bool(len(self.reused)) and bool(self.reused[-1] >= start)

    def moved(self, start: int, stop: int) -> Positions:
        """Relocated positions in [start, stop), ascending: int64 [n]."""
        first, last = np.searchsorted(self.reused, (start, stop))
        return self.reused[first:last]

    def sources(self, start: int) -> list[Span]:
        """Segments of which some row at or behind `start` is relocated."""
        begins, ends = np.maximum(np.array(self.segments).T, start)
        counts = np.searchsorted(self.reused, ends) - np.searchsorted(self.reused, begins)
        return [segment for segment, count in zip(self.segments, counts.tolist(), strict=True) if count]

    def computed(self, start: int, end: int) -> Positions:
        """Computed rows in [start, end), ascending: int64 [n]."""
        last = len(self._kept)
        rows = np.flatnonzero(~self._kept[start:end]) + start
        return np.concatenate([rows, np.arange(max(start, last), end)]) if end > last else rows

    def stretch(self, start: int, end: int, rows: int) -> int:
        """Where a chunk from `start` ends that computes at most `rows` rows; `end` if those suffice.

        A chunk ends behind a computed row, so that the positions before its end have the local KV that the next rows
        look back at; the last row of a prompt is one. Returns `start` if not one row fits.
        """
        computed = self.computed(start, end)
        count = min(max(0, rows), len(computed))
        return int(computed[count - 1]) + 1 if count else start

    def local_rows(self, start: int, stop: int, window: int, sink: int) -> Flags:
        """Which of `moved(start, stop)` have local KV that some row sees: sinks, and windows of computed rows.

        The row after `stop` counts as well: a prefix is only reusable if its tail is there.
        """
        moved, computed = self.moved(start, stop), self.computed(start, stop)
        # Of the rows that come after a position the first one is the nearest.
        counts = np.diff(np.searchsorted(moved, computed), prepend=0, append=len(moved))
        following = np.repeat(np.append(computed, stop), counts)
        seen: Flags = (moved > following - window) | (moved < sink)
        return seen

    def key(self, tokens: Sequence[int]) -> array[int]:
        """Token ids as a key of the radix tree: int64, first row of a segment and first row after one are marked."""
        key = array("q", tokens)
        starts = {start for start, _ in self.segments}
        for start, end in self.segments:
            if start < len(key):
                key[start] += SEGMENT_START
            if end < len(key) and end not in starts:
                key[end] += CONTEXT_START
        return key

    def segment_key(self, tokens: Sequence[int], segment: Span) -> array[int]:
        """Prompt whose ordinary KV is the segment's isolated KV."""
        return array("q", tokens[: self.origin]) + array("q", tokens[slice(*segment)])

    def _asking(self, tokens: Sequence[int]) -> list[Path]:
        """All segments, and the text behind the last one as if it stood behind the lead, its queries kept."""
        text = (self.tail, len(tokens))
        own = self.segment_key(tokens, text)
        segments = [Path(span, self.origin, self.segment_key(tokens, span), False) for span in self.segments]
        return [*segments, Path(text, self.origin, own, True)]

    def most_tokens(self, length: int) -> int:
        """Tokens, at most, of a prompt of `length` tokens that the request itself computes and holds."""
        if not self.repair.selects:
            return length
        sizes = sorted((end - start for start, end in self.segments), reverse=True)
        return length - sum(sizes[self.repair.documents :])

    def left(self, chosen: Sequence[int], length: int) -> Positions:
        """Positions of a prompt of `length` tokens that are left with these segments and no others, ascending: int64 [n]."""
        kept = np.ones(length, dtype=np.bool_)
        for number in set(range(len(self.segments))) - set(chosen):
            kept[slice(*self.segments[number])] = False
        return np.flatnonzero(kept)

    def paths(self, tokens: Sequence[int], start: int) -> list[Path]:
        """What a request needs in the tree to go on from `start`, in order of position.

        Segments of which it relocates rows; and, if rows of segments have still to be chosen, everything before the end
        of the last such segment, text between segments as if it stood alone.
        """
        if self.repair.selects:
            return self._asking(tokens)
        undecided = self.undecided(start)
        end = undecided[-1][1] if undecided else 0
        spans = {span for span in self.segments if span[0] < end} | set(self.sources(start))
        segments = [Path(span, self.origin, self.segment_key(tokens, span), self.repair.keeps_whole) for span in spans]
        between = [Path((a, b), 0, array("q", tokens[a:b]), False) for a, b in gaps(list(self.segments), 0, end)]
        return sorted(segments + between, key=lambda path: path.span)
