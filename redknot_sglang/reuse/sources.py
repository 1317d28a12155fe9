# SPDX-License-Identifier: Apache-2.0
"""Segments in the tree that requests are about to relocate: looked up, locked, and computed if they are not there."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redknot_sglang.plan.identity import Identity, identity_of
from redknot_sglang.plan.plan import Path, Plan
from redknot_sglang.plan.request import state_of
from redknot_sglang.plan.spans import Span
from redknot_sglang.reuse.feasible import has_room_for, reserve
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.shared import SharedSegments
from redknot_sglang.seams.sglang import AddReqResult, MatchPrefixParams, RadixKey


@dataclass
class Source:
    """A path in the tree, locked. slots: its global slots, int64 [tokens of its key]."""

    path: Path
    identity: Identity
    slots: Tensor
    node: Any
    lock: Any


# By the span of the prompt that they are for.
Sources = dict[Span, Source]


def _taken(req: Any) -> Sources:
    """The sources of a request, which has none from now on."""
    state = state_of(req)
    sources, state.sources = state.sources, {}
    return sources


def is_idle(adder: Any) -> bool:
    """Whether nobody runs, or will after this pass so far."""
    return not adder.can_run_list and (adder.running_batch is None or adder.running_batch.is_empty())


class SegmentSources:
    """Locks on segments, for the requests that are being admitted and for one that waits.

    An admitted request holds its locks (`RequestState.sources`) until it has relocated what it needs; locks on what several
    running requests are made of stay (`shared`). Of the requests in the queue only the first that waits for segments keeps
    locks on what is there already, so that computing one of its segments cannot evict another for ever; it gives them up to
    whoever would otherwise stand still.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._pinned: tuple[Any, Sources] | None = None
        self._made: tuple[Any, Plan, int, list[Path]] | None = None
        self.isolated = IsolatedPrefills()
        self.shared = SharedSegments(self._unlock, self._touch)

    def gather(self, adder: Any, req: Any, plan: Plan, start: int) -> AddReqResult | None:
        """Lock all paths that the request needs to go on from `start`.

        Returns None if it has them, CONTINUE if some have to be computed first, and NO_TOKEN if there is no room for that
        as long as others run. Isolated prefills that evict each other would go before every decode step, for ever.
        """
        state = state_of(req)
        first = self._pinned is None or self._pinned[0] is req
        if not first and self.isolated.are_under_way(state.awaited):
            # Under load many requests wait for the same path, and looking up all of theirs in every pass takes longer
            # than the forward that computes it.
            self._check_room(adder)
            return AddReqResult.CONTINUE
        sources: Sources = self._pinned[1] if self._pinned is not None and first else {}
        missing = self._lock(req, self._paths(req, plan, start), sources)
        may_load = self._tree.has_host_tier and bool(missing)
        if may_load and (first or has_room_for(self._tree, adder, req, plan, missing)):
            # What is on the host comes back now: the plan reads it before the request's own forward.
            missing = self._lock(req, missing, sources, adder)
        if not missing:
            self._pinned = None if first else self._pinned
            state.sources = sources
            return None
        has_room = reserve(self._tree, adder, req, plan, self._yet_to_begin(req, missing))
        self._wait(adder, req, sources)
        if not has_room and (self.isolated.is_sending or not is_idle(adder)):
            return AddReqResult.NO_TOKEN
        state.awaited = [identity_of(req, path) for path in missing]
        state.fresh |= self.isolated.request(req, missing)
        return AddReqResult.CONTINUE

    def _lock(self, req: Any, paths: Iterable[Path], sources: Sources, adder: Any = None) -> list[Path]:
        """Lock the paths that are in the tree, and note them in `sources`; returns those that are not.

        adder: of this pass, if what is on the host may be loaded; else paths that are there count as missing.
        """
        room = None if adder is None else lambda: (adder.rem_total_tokens, adder.rem_swa_tokens)
        missing = []
        for path in paths:
            if path.span in sources:
                continue
            identity = identity_of(req, path)
            locked = self._tree.lock_path(path.key, identity[0], path.whole, room)
            if locked is None:
                missing.append(path)
            else:
                sources[path.span] = Source(path, identity, *locked)
        return missing

    def _yet_to_begin(self, req: Any, paths: list[Path]) -> list[Path]:
        """Those of which no isolated prefill has slots already."""
        return [path for path in paths if not self.isolated.has_begun(identity_of(req, path))]

    def refused(self, adder: Any, req: Any) -> None:
        """No room for a request with locks in this pass; the next chunk of a request waits with what it has."""
        if req.req_pool_idx is None:
            self._wait(adder, req, _taken(req))

    def release(self, req: Any) -> None:
        """Drop the locks of a request, if it has any."""
        sources = _taken(req)
        if self._pinned is not None and self._pinned[0] is req:
            sources, self._pinned = self._pinned[1], None
        for source in sources.values():
            self._unlock(source)

    def keep(self, req: Any, spans: Collection[Span]) -> None:
        """A request that runs has used all paths but those for `spans`: others decide how long the rest stays locked."""
        sources: Sources = state_of(req).sources
        for span in [span for span in sources if span not in spans]:
            source = sources.pop(span)
            self._tree.segment_used(source.identity[0], source.path.key, source.node, source.path.whole)
            self.shared.used(req, source)

    def ended(self, req: Any) -> None:
        """A request has ended or was retracted: it has no locks any more, and what it shared it shares no longer."""
        self.release(req)
        # Where requests wait, room is short, and they are likely to need what this one was made of. A lookup for each path
        # takes milliseconds together, which an answer nobody waits behind is spared.
        self.shared.ended(req, touch_all=bool(self.isolated.waiting))
        self.isolated.done(req)

    def make_room(self) -> None:
        """Give up all locks but those of requests that are relocating: a running request needs room."""
        self.release_waiting()
        self.shared.release()

    def release_waiting(self, but: Any = None) -> None:
        """Have the request that waits with locks give them up, unless it is `but`; it looks its segments up again."""
        if self._pinned is not None and self._pinned[0] is not but:
            self.release(self._pinned[0])

    def left_queue(self, queue: list[Any]) -> None:
        """Requests were aborted while queued; `queue` is what is left."""
        if self._pinned is not None and all(req is not self._pinned[0] for req in queue):
            self.release_waiting()
        self.isolated.dropped(queue)
        self.isolated.end_unwanted()

    def _paths(self, req: Any, plan: Plan, start: int) -> list[Path]:
        """`Plan.paths`; a request that waits for room asks in every pass, and at 32K tokens they take half a millisecond."""
        made = self._made
        if made is None or made[0] is not req or made[1] is not plan or made[2] != start:
            made = self._made = req, plan, start, plan.paths(req.full_untruncated_fill_ids, start)
        return made[3]

    def _wait(self, adder: Any, req: Any, sources: Sources) -> None:
        if self._pinned is None:
            self._pinned = (req, sources)
        elif self._pinned[0] is not req:
            for source in sources.values():
                self._unlock(source)
        self._check_room(adder)

    def _check_room(self, adder: Any) -> None:
        # What this pass has admitted already may count on evicting what the locks hold.
        if adder.rem_total_tokens <= 0 or adder.rem_swa_tokens <= 0:
            self.release_waiting()

    def _touch(self, identity: Identity) -> None:
        namespace, tokens = identity
        self._tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", tokens), namespace)))

    def _unlock(self, source: Source) -> None:
        self._tree.dec_lock_ref(source.node, source.lock.to_dec_params())
