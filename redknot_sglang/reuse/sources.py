# SPDX-License-Identifier: Apache-2.0
"""Segments in the tree that requests are about to relocate: looked up, locked, and computed if they are not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redknot_sglang.radix.spans import Span
from redknot_sglang.reuse.isolated import Identity, IsolatedPath, IsolatedPrefills
from redknot_sglang.reuse.plan import Plan

# Namespaces beside the request's own: of scout passes, whose KV is that of the first layers only, and of segments of
# which local heads keep all rows.
SCOUT, WHOLE = "\0redknot scout", "\0redknot whole"


@dataclass
class Source:
    """A segment or a scout pass in the tree, locked. slots: its global slots, int64 [tokens of its key]."""

    slots: Tensor
    node: Any
    lock: Any


# Segments, and under None the scout pass.
Sources = dict[Span | None, Source]


class SegmentSources:
    """Locks on segments, for the requests that are being admitted and for one that waits.

    An admitted request holds its locks (`req.redknot_sources`) until it has relocated what it needs. Of the requests in
    the queue only the first that waits for segments keeps locks on what is there already, so that computing one of its
    segments cannot evict another for ever; it gives them up to whoever would otherwise stand still.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._pinned: tuple[Any, Sources] | None = None
        self.isolated = IsolatedPrefills()

    def gather(self, adder: Any, req: Any, plan: Plan, start: int) -> bool:
        """Lock all segments of which the request relocates rows, and the scout pass if it needs one.

        False if some have to be computed first.
        """
        first = self._pinned is None or self._pinned[0] is req
        sources: Sources = self._pinned[1] if self._pinned is not None and first else {}
        missing: dict[Identity, IsolatedPath] = {}
        for path in _needed(req, plan, start):
            if path.segment in sources:
                continue
            locked = self._tree.lock_path(path.key, path.extra_key, path.whole)
            if locked is None:
                missing.setdefault(path.identity, path)
            else:
                sources[path.segment] = Source(*locked)
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

    def release_scout(self, req: Any) -> None:
        """Drop the lock of a request on its scout pass."""
        self._unlock(req.redknot_sources.pop(None))

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

    def _wait(self, adder: Any, req: Any, sources: Sources) -> None:
        if self._pinned is None:
            self._pinned = (req, sources)
        elif self._pinned[0] is not req:
            for source in sources.values():
                self._unlock(source)
        # What this pass has admitted already may count on evicting what the locks hold.
        if adder.rem_total_tokens <= 0 or adder.rem_swa_tokens <= 0:
            self.release_waiting()

    def _unlock(self, source: Source) -> None:
        self._tree.dec_lock_ref(source.node, source.lock.to_dec_params())


def _needed(req: Any, plan: Plan, start: int) -> Iterator[IsolatedPath]:
    """Paths that a request needs in the tree to go on from `start`."""
    tokens, whole = req.full_untruncated_fill_ids, plan.repair.scouts
    extra_key = (req.extra_key or "") + WHOLE if whole else req.extra_key
    for segment in plan.sources(start):
        yield IsolatedPath(segment, plan.segment_key(tokens, segment), extra_key, whole)
    if plan.undecided(start):
        yield IsolatedPath(None, plan.scout_key(tokens, start), (req.extra_key or "") + SCOUT, False)
