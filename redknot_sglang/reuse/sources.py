# SPDX-License-Identifier: Apache-2.0
"""The cached segments (documents) that requests are about to relocate: looked up and locked, or computed if they are
missing.

To *relocate* a segment is to copy its KV from the prefix tree to a request's own slots. Until then it must not be
evicted, so it is locked.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redknot_sglang.plan.identity import Identity, identity_of
from redknot_sglang.plan.plan import Path, Plan
from redknot_sglang.plan.request import is_isolated, state_of
from redknot_sglang.plan.spans import Span
from redknot_sglang.reuse.feasible import has_room_for, reserve
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.probe import Piece
from redknot_sglang.reuse.shared import SharedSegments
from redknot_sglang.seams.sglang import AddReqResult, MatchPrefixParams, RadixKey


@dataclass
class Source:
    """A locked path in the tree.

    path: the part of the prompt that it is for.
    identity: its namespace and tokens.
    slots: its global slots, int64 [tokens of its key].
    node, lock: where it ends in the tree, and SGLang's lock on it.
    """

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
    """Whether no request runs and this scheduling pass has admitted none so far. adder: SGLang's PrefillAdder of the
    pass.
    """
    return not adder.can_run_list and (adder.running_batch is None or adder.running_batch.is_empty())


def pieces_of(sources: Sources) -> list[Piece]:
    """The spans of a prompt that have been computed, each without the lead before it, in order of position."""
    return [
        Piece(span, source.path.origin, source.slots[source.path.origin :]) for span, source in sorted(sources.items())
    ]


class SegmentSources:
    """The locks on segments that requests hold. tree: the HeadClassRadixCache.

    An admitted request holds its locks (`RequestState.sources`) until it has relocated what it needs. Segments that
    several running requests have used stay locked after that (`shared`). Of the requests in the queue, only the first
    one that waits for segments holds locks on those that are there already. Otherwise computing one of its segments
    could evict another, again and again. It gives its locks up to a request that could not go on without the room.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._pinned: tuple[Any, Sources] | None = None
        self._made: tuple[Any, Plan, int, list[Path]] | None = None
        self.isolated = IsolatedPrefills()
        self.shared = SharedSegments(self._unlock, self._touch)

    def gather(self, adder: Any, req: Any, plan: Plan, start: int) -> AddReqResult | None:
        """Lock all paths that the request needs to go on from `start`.

        adder: SGLang's PrefillAdder of this scheduling pass.
        Returns None if the request has them all, CONTINUE if some have to be computed first, and NO_TOKEN if there is
        no room for that while others run: isolated prefills that evict one another would be scheduled before every
        decode step, for ever.
        """
        state = state_of(req)
        first = self._pinned is None or self._pinned[0] is req
        if not first and self.isolated.are_under_way(state.awaited):
            # Under load many requests wait for the same path, and looking up all of theirs in every pass takes longer
            # than the forward that computes it.
            self._check_room(adder)
            return AddReqResult.CONTINUE
        sources: Sources = self._pinned[1] if self._pinned is not None and first else {}
        paths, missing = self._paths(req, plan, start), list[Path]()
        if plan.repair.selects and not sources and self.is_alone(adder, req):
            missing = self._lock(req, (paths[0], paths[-1]), sources)
        if missing != paths[-1:]:
            missing = self._lock(req, paths, sources)
        # Else the first document is there, so probably all are, and only the question is missing: looking them up takes
        # milliseconds, in which the device can compute it.
        may_load = self._tree.has_host_tier and bool(missing)
        if may_load and (first or has_room_for(self._tree, adder, req, plan, missing)):
            # What is on the host comes back now: the plan reads it before the request's own forward. To make room for it may not cost
            # the request what it has found of its own path, on which it holds no lock yet.
            own = self._tree.inc_lock_ref(req.last_node)
            missing = self._lock(req, missing, sources, adder)
            self._tree.dec_lock_ref(req.last_node, own.to_dec_params())
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

    def soon(self, adder: Any, req: Any, plan: Plan, start: int) -> list[Piece] | None:
        """What a request that `gather` has wait needs, if all that is missing is the text that asks and the forward under way computes
        the last of it; else None. Parameters as in `gather`.

        The text has no lock yet. What is queued on the device before the forward's result is looked at reads it in time.
        """
        if self._pinned is None or self._pinned[0] is not req:
            return None
        sources, pieces = self._pinned[1], []
        for path in self._paths(req, plan, start):
            if path.span in sources:
                slots = sources[path.span].slots
            elif not path.whole:
                # Its prefix in the tree, which the request is about to look for, comes with the result.
                return None
            else:
                computed = self.isolated.slots_under_way(identity_of(req, path), adder.can_run_list)
                if computed is None:
                    return None
                slots = computed
            pieces.append(Piece(path.span, path.origin, slots[path.origin :]))
        return pieces

    def is_alone(self, adder: Any, req: Any) -> bool:
        """Whether nobody but this request and isolated prefills runs or waits, so that waiting for the device delays nobody."""
        running = [] if adder.running_batch is None else adder.running_batch.reqs
        others = [*adder.can_run_list, *running, *self.isolated.waiting]
        return all(other is req or is_isolated(other) for other in others)

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
        """This pass has no room for a request that holds locks. If it is not running yet, it waits as the class
        describes; a running one, of which a chunk is to be computed, keeps its locks.
        """
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
        """A running request keeps the locks for these spans of its prompt; it has relocated what it needs of all
        others.
        """
        sources: Sources = state_of(req).sources
        for span in [span for span in sources if span not in spans]:
            source = sources.pop(span)
            self._tree.segment_used(source.identity[0], source.path.key, source.node, source.path.whole)
            self.shared.used(req, source)

    def ended(self, req: Any) -> None:
        """A request has ended or was retracted: it gives up its locks, and counts no longer as one that shares
        segments.
        """
        self.release(req)
        # Where requests wait, room is short, and they are likely to need what this one was made of. A lookup for each path
        # takes milliseconds together, which an answer nobody waits behind is spared.
        self.shared.ended(req, touch_all=bool(self.isolated.waiting))
        self.isolated.done(req)

    def make_room(self) -> None:
        """Give up all locks but those of admitted requests that have still to relocate: a running request needs room."""
        self.release_waiting()
        self.shared.release()

    def release_waiting(self, but: Any = None) -> None:
        """Have the waiting request that holds locks give them up, unless it is `but`. It will look its segments up
        again.
        """
        if self._pinned is not None and self._pinned[0] is not but:
            self.release(self._pinned[0])

    def left_queue(self, queue: list[Any]) -> None:
        """Requests in the queue were aborted. queue: the requests that are left in it."""
        if self._pinned is not None and all(req is not self._pinned[0] for req in queue):
            self.release_waiting()
        self.isolated.dropped(queue)
        self.isolated.end_unwanted()

    def _paths(self, req: Any, plan: Plan, start: int) -> list[Path]:
        """`Plan.paths`; a request that waits for room asks in every pass, and at 32K tokens they take half a
        millisecond.
        """
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
