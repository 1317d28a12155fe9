# SPDX-License-Identifier: Apache-2.0
"""Segments in the tree that requests are about to relocate: looked up, locked, and computed if they are not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from torch import Tensor

from redknot_sglang.radix.spans import Span
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.plan import Plan


@dataclass
class Source:
    """A segment in the tree, locked. slots: its global slots, int64 [tokens of its key]."""

    slots: Tensor
    node: Any
    lock: Any


class SegmentSources:
    """Locks on segments, for the requests that are being admitted and for one that waits.

    An admitted request holds its locks (`req.redknot_sources`) until it has relocated what it needs. Of the requests in
    the queue only the first that waits for segments keeps locks on what is there already, so that computing one of its
    segments cannot evict another for ever; it gives them up to whoever would otherwise stand still.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._pinned: tuple[Any, dict[Span, Source]] | None = None
        self.isolated = IsolatedPrefills()

    def gather(self, adder: Any, req: Any, plan: Plan, start: int) -> bool:
        """Lock all segments of which the request relocates rows; False if some have to be computed first."""
        first = self._pinned is None or self._pinned[0] is req
        sources = self._pinned[1] if self._pinned is not None and first else {}
        tokens = req.full_untruncated_fill_ids
        missing: dict[bytes, tuple[Span, Any]] = {}
        for segment in plan.sources(start):
            if segment in sources:
                continue
            key = plan.segment_key(tokens, segment)
            source = self._lock(key, req.extra_key)
            if source is None:
                missing.setdefault(key.tobytes(), (segment, key))
            else:
                sources[segment] = source
        if not missing:
            self._pinned = None if first else self._pinned
            req.redknot_sources = sources
            return True
        self._wait(adder, req, sources)
        fresh = self.isolated.request(req, missing.values())
        req.redknot_fresh = req.__dict__.get("redknot_fresh", set()) | fresh
        return False

    def refused(self, adder: Any, req: Any) -> None:
        """No room for a request with locks in this pass; the next chunk of a request waits with what it has."""
        if req.req_pool_idx is None:
            self._wait(adder, req, req.__dict__.pop("redknot_sources", {}))

    def release(self, req: Any) -> None:
        """Drop the locks of a request, if it has any."""
        sources = req.__dict__.pop("redknot_sources", None)
        if self._pinned is not None and self._pinned[0] is req:
            sources, self._pinned = self._pinned[1], None
        for source in (sources or {}).values():
            self._unlock(source)

    def release_behind(self, req: Any, stop: int) -> None:
        """Drop the locks of a request on segments that end at or before position `stop`."""
        for segment in [segment for segment in req.redknot_sources if segment[1] <= stop]:
            self._unlock(req.redknot_sources.pop(segment))

    def release_waiting(self, but: Any = None) -> None:
        """Have the request that waits with locks give them up, unless it is `but`; it looks its segments up again."""
        if self._pinned is not None and self._pinned[0] is not but:
            self.release(self._pinned[0])

    def left_queue(self, queue: list[Any]) -> None:
        """Requests were aborted while queued; `queue` is what is left."""
        if self._pinned is not None and all(req is not self._pinned[0] for req in queue):
            self.release_waiting()
        self.isolated.dropped(queue)

    def _wait(self, adder: Any, req: Any, sources: dict[Span, Source]) -> None:
        if self._pinned is None:
            self._pinned = (req, sources)
        elif self._pinned[0] is not req:
            for source in sources.values():
                self._unlock(source)
        # What this pass has admitted already may count on evicting what the locks hold.
        if adder.rem_total_tokens <= 0 or adder.rem_swa_tokens <= 0:
            self.release_waiting()

    def _lock(self, key: Any, extra_key: str | None) -> Source | None:
        match = self._tree.match_prefix(MatchPrefixParams(key=RadixKey(key, extra_key)))
        if len(match.device_indices) != len(key):
            return None
        return Source(match.device_indices, match.last_device_node, self._tree.inc_lock_ref(match.last_device_node))

    def _unlock(self, source: Source) -> None:
        self._tree.dec_lock_ref(source.node, source.lock.to_dec_params())
