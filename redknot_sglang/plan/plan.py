# SPDX-License-Identifier: Apache-2.0
"""What a segmented request reuses, relocates, repairs and computes: plain data, made before anything runs.

A prompt is a *lead*, then *segments* (documents), possibly with text between them, then a *tail*. A *row* is one token
that goes through the model. What the answer is computed from is defined without the cache, so that the cache cannot
change it:

- The KV of a segment is what the segment has when it is computed alone, from position 0 (or right after the lead). It
  is *relocated*: copied to the request's slots, its keys turned to their positions in this prompt.
- *Computed rows* are all rows outside segments, and those rows of segments that the repair policy has computed again
  (*repaired*). They go through the model at their true positions and see what their head class lets them see of all
  before them.

Positions are those of the prompt. Rows are arrays of positions and not spans: the policy `blend` repairs thousands of
single rows of a long prompt, and a scheduler that walks them one by one keeps the GPU waiting.
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
    """A part of a prompt as the prefix tree keeps it: computed in isolation, without the text before it.

    span: its positions in the prompt.
    origin: where its own tokens begin in `key`: 0, or the length of the lead that it was computed after.
    key: token ids, int64.
    whole: whether local heads keep all of its rows, not only its sink and its last window.
    asks: whether it is the text that asks for documents, of which no layer behind the deepest retrieval head is computed.
        Such a path is whole.
    """

    span: Span
    origin: int
    key: array[int]
    whole: bool
    asks: bool = False


@dataclass(frozen=True)
class Plan:
    """How a prompt is divided into lead, segments and tail, and how its segments are repaired.

    segments: spans of the prompt, ascending, without overlap, at least one, none empty.
    repair: the repair policy.
    after_lead: whether segments are computed right after the lead, instead of from position 0.
    choices: by segment, the rows that a probe has chosen to be repaired, ascending: int64. A segment that is not in it
        has still to be looked at. Empty under policies without probes.
    """

    segments: tuple[Span, ...]
    repair: Policy
    after_lead: bool = False
    choices: Mapping[Span, Positions] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> str:
        """Namespace in the tree of the request's own prompt: its KV depends on the policy, so others must not find it."""
        return f"\0redknot {self.repair.name} {'lead' if self.after_lead else 'none'}"

    @property
    def lead(self) -> int:
        """Length of the lead: tokens before the first segment."""
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
        """Segments that end behind position `start` and whose repaired rows a probe has still to choose."""
        if not self.repair.probes:
            return []
        return [segment for segment in self.segments if segment[1] > start and segment not in self.choices]

    def choosing(self, choices: Mapping[Span, Positions]) -> Plan:
        """This plan with the chosen rows of more segments added. choices: as the field of the same name."""
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
        """Where a chunk ends that begins at `start`, goes no further than `end` and computes at most `rows` rows.

        A chunk ends right behind a computed row: then the positions before its end have the local KV that the rows
        after it look back at. The last row of a prompt is always computed. Returns `start` if not one row fits.
        """
        computed = self.computed(start, end)
        count = min(max(0, rows), len(computed))
        return int(computed[count - 1]) + 1 if count else start

    def local_rows(self, start: int, stop: int, window: int, sink: int) -> Flags:
        """Which of `moved(start, stop)` need local KV: those in the sink, and those in the window of a computed row.
        bool [n].

        window, sink: W and S in tokens. The row after `stop` counts as a computed one: the next chunk begins with it.
        """
        moved, computed = self.moved(start, stop), self.computed(start, stop)
        # Of the rows that come after a position the first one is the nearest.
        counts = np.diff(np.searchsorted(moved, computed), prepend=0, append=len(moved))
        following = np.repeat(np.append(computed, stop), counts)
        seen: Flags = (moved > following - window) | (moved < sink)
        return seen

    def key(self, tokens: Sequence[int]) -> array[int]:
        """The request's own tokens as a key of the tree, int64.

        The first token of each segment and the first one behind it are marked: the same tokens with other borders have
        other KV.
        """
        key = array("q", tokens)
        starts = {start for start, _ in self.segments}
        for start, end in self.segments:
            if start < len(key):
                key[start] += SEGMENT_START
            if end < len(key) and end not in starts:
                key[end] += CONTEXT_START
        return key

    def segment_key(self, tokens: Sequence[int], segment: Span) -> array[int]:
        """The prompt to compute for a segment in isolation, int64: the lead if the plan asks for it, then the segment's
        tokens.
        """
        return array("q", tokens[: self.origin]) + array("q", tokens[slice(*segment)])

    def _asking(self, tokens: Sequence[int]) -> list[Path]:
        """All segments, and the text behind the last one as if it stood behind the lead, its queries kept, in as many layers as
        the choice looks at.
        """
        text = (self.tail, len(tokens))
        own = self.segment_key(tokens, text)
        segments = [Path(span, self.origin, self.segment_key(tokens, span), False) for span in self.segments]
        return [*segments, Path(text, self.origin, own, True, asks=True)]

    def most_tokens(self, length: int) -> int:
        """How many tokens of a prompt of `length` tokens the request itself holds at most. A policy that selects leaves
        some out.
        """
        if not self.repair.selects:
            return length
        sizes = sorted((end - start for start, end in self.segments), reverse=True)
        return length - sum(sizes[self.repair.documents :])

    def left(self, chosen: Sequence[int], length: int) -> Positions:
        """Positions that are left of a prompt when all segments but the chosen ones are taken out, ascending: int64
        [n].

        chosen: numbers of segments.
        length: tokens of the prompt.
        """
        kept = np.ones(length, dtype=np.bool_)
        for number in set(range(len(self.segments))) - set(chosen):
            kept[slice(*self.segments[number])] = False
        return np.flatnonzero(kept)

    def paths(self, tokens: Sequence[int], start: int) -> list[Path]:
        """What has to be in the tree for a request to go on from position `start`, in order of position.

        These are the segments of which it relocates rows. If a probe has still to choose rows of some segments, it is
        everything before the end of the last of these, with the text between segments computed as if it stood alone. A
        policy that selects needs all segments and the text behind the last one.

        tokens: ids of the prompt.
        """
        if self.repair.selects:
            return self._asking(tokens)
        undecided = self.undecided(start)
        end = undecided[-1][1] if undecided else 0
        spans = {span for span in self.segments if span[0] < end} | set(self.sources(start))
        segments = [Path(span, self.origin, self.segment_key(tokens, span), self.repair.keeps_whole) for span in spans]
        between = [Path((a, b), 0, array("q", tokens[a:b]), False) for a, b in gaps(list(self.segments), 0, end)]
        return sorted(segments + between, key=lambda path: path.span)
