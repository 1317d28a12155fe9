# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: SGLang's radix tree, over two head classes.

Global heads need the KV of every token of a path. Local heads need that of the first tokens (the *sink*) and of the
last ones before a place from which a request may go on (a *tail*). So a node always has global slots, and it has local
slots only where `LocalHeads` (`local_heads.py`) keeps them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from time import monotonic
from typing import Any

from torch import Tensor

from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.request import is_own_work, state_of
from redknot_sglang.pool.sizing import decode_window, local_slots_per_sequence, slots_ahead
from redknot_sglang.radix.ages import Ages, nodes_used
from redknot_sglang.radix.cooling import Cooling
from redknot_sglang.radix.events import Events
from redknot_sglang.radix.global_heads import GlobalHeads
from redknot_sglang.radix.inventory import mark_document
from redknot_sglang.radix.keeper import POLICY, Keeper
from redknot_sglang.radix.listeners import Listener, Move
from redknot_sglang.radix.local_heads import LocalHeads
from redknot_sglang.radix.paths import free_unheld
from redknot_sglang.radix.ranked import RankedGlobalHeads, RankedLocalHeads
from redknot_sglang.radix.scope import ALL
from redknot_sglang.radix.stored import StoredCache
from redknot_sglang.seams.model_config import UNBOUNDED_WINDOW
from redknot_sglang.seams.sglang import (
    ComponentType,
    InsertParams,
    InsertResult,
    MatchPrefixParams,
    MatchResult,
    RadixKey,
)

# Share of an idle scheduler's time that checks of the whole tree may take.
_CHECKING = 0.05


class HeadClassRadixCache(StoredCache):
    """The tree of a server with --redknot.

    params: SGLang's CacheInitParams.
    cost: what it takes to compute a token, by its position, for the eviction policy `redknot`; in any unit, at least 1.
        None: all tokens take the same.
    listeners: told what happens here; set by whoever builds the tree.
    keeper: counts uses for the eviction policy `redknot`; None under SGLang's own policies.
    cooling: turns nodes cold whose lifetime is over, under that policy.
    ages: knows how long ago what was used.
    ahead: slots that a request has behind its text while it decodes, for drafts of speculative decoding.
    events: what routers are told, with --kv-events-config; else None.
    """

    def __init__(self, params: Any, cost: Callable[[int], int] | None = None) -> None:
        params.tree_components = (ComponentType.FULL, ComponentType.SWA)
        ranked = params.eviction_policy == POLICY
        params.component_registry_override = (
            {ComponentType.FULL: RankedGlobalHeads, ComponentType.SWA: RankedLocalHeads}
            if ranked
            else {ComponentType.FULL: GlobalHeads, ComponentType.SWA: LocalHeads}
        )
        self.keeper: Keeper | None = None
        self.cooling: Cooling | None = None
        self.ages = Ages()
        # SGLang's own events would name what no router may rely on.
        tells, params.enable_kv_cache_events = params.enable_kv_cache_events, False
        # With a draft model SGLang's tree is over pairs of tokens, since the draft model's row of a token is made of the next one, too.
        # Drafts are only guesses, so ours stays one over tokens: where paths part, one such row is that of another answer.
        params.is_eagle = False
        super().__init__(params)
        if ranked:
            self.keeper = self.tree_core.eviction_strategy.keeper = Keeper(self, cost or (lambda position: 1))
            self.cooling = Cooling(self)
        self.local_heads: LocalHeads = self.components[ComponentType.SWA]
        self.local_window, self.decode_window, self._reported = windows(self)
        self.ahead = slots_ahead(self.token_to_kv_pool_allocator.get_kvcache().draft)
        self.listeners: Sequence[Listener] = ()
        self.events = Events(self) if tells else None
        self._scope = self.local_heads.scope
        self._next_check = 0.0

    @property
    def local_reach(self) -> tuple[int, int]:
        """Window and sink: the tokens whose local slots a sequence needs to go on."""
        return self.local_heads.window, self.local_heads.sink

    @property
    def sliding_window_size(self) -> int:
        """Local slots that one running sequence can hold: the scheduler reads this where it budgets the local pool."""
        return self._reported

    @contextmanager
    def reporting_what_a_row_sees(self) -> Iterator[None]:
        """Within this block `sliding_window_size` is W, the window that a row sees: for SGLang's decisions that are not
        about budgets.
        """
        reported, self._reported = self._reported, self.local_window
        try:
            yield
        finally:
            self._reported = reported

    def reset(self) -> None:
        """Forget all paths."""
        super().reset()
        for component in self.components.values():
            if isinstance(component, RankedGlobalHeads | RankedLocalHeads):
                component.begin()
        if self.keeper is not None:
            self.keeper.reset()
        if self.events is not None:
            self.events.clear()

    def take_events(self) -> list[Any]:
        """What routers are to be told since the last call (see `Events.take`); nothing without --kv-events-config."""
        return [] if self.events is None else self.events.take()

    def sanity_check(self) -> None:
        """Check the whole tree, but not each time that SGLang asks, which is whenever it is idle.

        A check takes longer the more the tree holds (4 ms at a few hundred nodes), and a request that arrives meanwhile
        waits for it. Raises AssertionError with what is wrong.
        """
        begin = monotonic()
        if begin >= self._next_check:
            super().sanity_check()
            end = monotonic()
            self._next_check = end + (end - begin) / _CHECKING

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """The longest prefix of a request that can be reused.

        More of its tokens may be in the tree, but without the tail that reuse needs. How many is noted as the `branch`
        of its state: an earlier request had the same tokens up to there, so a third one may, and a tail there is worth
        keeping.

        params: SGLang's MatchPrefixParams.
        """
        # Newer SGLang names the request also where it looks for the path that it has just inserted for it.
        req: Any = None if self._scope.now.inserted else params.req
        state = None if req is None else state_of(req)
        meant = {} if state is None else {"plan": state.plan, "whole": state.whole}
        with self._scope.within(**meant):
            plan = self._scope.now.plan
            if plan is not None:
                params = dataclasses.replace(params, key=_planned(plan, params.key))
            result = super().match_prefix(params)
        if state is not None:
            state.found = len(result.device_indices) + self._tokens_between(result)
            state.branch = result.full_kv_hit_length if result.full_kv_hit_length > state.found else 0
            req.swa_evict_floor = self.local_heads.sink
        return result

    def insert(self, params: InsertParams) -> InsertResult:
        """Insert a request's path. That of a segmented request has a namespace of its own, since its KV is approximate."""
        plan = self._scope.now.plan
        if plan is not None:
            params.key = _planned(plan, params.key)
        return super().insert(params)

    def _tokens_between(self, match: MatchResult) -> int:
        """Tokens of a match behind those that can be reused without a load from the host."""
        node, count = self.tree_core.node_by_id(match.best_match_node), 0
        while node.id != match.last_device_node:
            count += len(node.key)
            node = node.parent
        return count

    def lock_path(
        self, key: Any, extra_key: str | None, whole: bool, room: Callable[[], tuple[float, float]] | None = None
    ) -> tuple[Tensor, Any, Any] | None:
        """Lock a path, so that nothing of it is evicted, if all of it is in the tree.

        key: its tokens.
        extra_key: its namespace, or None.
        whole: whether all its tokens must have local slots, too, and are locked there.
        room: if some of it is on the host only, it is loaded, provided that it takes fewer global and local slots than
            this says when what is on the device is locked; None: it is not loaded.
        Returns its global slots, int64 [tokens], its last node, and what `dec_lock_ref` needs to release it; None if
        some of it is missing.
        """
        params = MatchPrefixParams(key=RadixKey(key, extra_key))
        span = ALL if whole else None
        with self._scope.within(whole=whole, span=span):
            match = self.match_prefix(params)
            missing = len(key) - len(match.device_indices)
            if missing and room is not None and self._tokens_between(match) == missing:
                self._load(match, room)
                match = self.match_prefix(params)
        if len(match.device_indices) != len(key):
            return None
        with self._scope.within(span=span):
            return match.device_indices, match.last_device_node, self.inc_lock_ref(match.last_device_node)

    def _load(self, match: MatchResult, room: Callable[[], tuple[float, float]]) -> None:
        # The load locks all that the path has on the device, until it is done. Whoever was promised room before counts on evicting
        # what nobody has locked, so the room is what is left beside that.
        lock = self.inc_lock_ref(match.last_device_node)
        global_room, local_room = room()
        if self._tokens_between(match) < global_room and match.swa_host_hit_length < local_room:
            self.load_back(match.best_match_node)
        self.dec_lock_ref(match.last_device_node, lock.to_dec_params())

    def free_path(self, key: RadixKey, held: Set[int]) -> int:
        """Free what nothing else needs of a path; returns the number of tokens freed. Parameters as in `free_unheld`."""
        if self.has_host_tier:
            # A copy to the host holds a lock until it is noticed to be done.
            self.check_hicache_events()
            self._withdraw_saves()
        local_before = sum(self.local_heads.freed.values())
        freed = free_unheld(self, key, held)
        self._moved(Move.DELETED, freed, sum(self.local_heads.freed.values()) - local_before)
        self._slots_changed()
        return freed

    def cache_unfinished_req(self, req: Any, chunked: bool = False, **kwargs: Any) -> None:
        """After a prefill chunk: put what has been computed into the tree, lock it for the request, and free what only
        the request's earlier chunks needed.

        req: SGLang's Req.
        chunked: whether more chunks of its prompt follow.
        """
        state, window = state_of(req), self.local_heads.window
        # Rows of a chunk in flight look back one window from its first row, so the lock covers all of that.
        span = window + len(req.get_fill_ids()) - req.cache_protected_len if chunked else window
        span = ALL if state.whole else span
        over_dead = chunked and bool(state.dead)
        with self._scope.within(plan=state.plan, span=span, own_path=chunked, over_dead=over_dead, inserted=True):
            super().cache_unfinished_req(req, chunked=chunked, **kwargs)
        self._drop_transient(req, is_complete=not chunked)
        if not chunked:
            self._count(req, req.get_fill_ids())
            self._save(req)
        self._slots_changed()

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int, **kwargs: Any) -> None:
        """At a request's end: put prompt and answer into the tree, release its locks, and tell the listeners.

        req: SGLang's Req.
        is_insert: whether its KV is kept; false for an aborted request.
        kv_len_to_handle: tokens of prompt and answer that have KV.
        """
        with self._scope.within(plan=state_of(req).plan):
            super().cache_finished_req(req, is_insert, kv_len_to_handle=kv_len_to_handle, **kwargs)
        # A request that ends with its prompt never had its tail locked.
        self._drop_transient(req, kv_len_to_handle if is_insert else 0, is_insert)
        if is_insert:
            self._count(req, (req.origin_input_ids + req.output_ids)[:kv_len_to_handle])
            self._save(req)
            if is_own_work(req) and not self.disable:
                mark_document(self.tree_core.node_by_id(req.last_node))
        for listener in self.listeners:
            listener.request_ended(req)
        self._slots_changed()

    def _dec_req_lock(self, req: Any, *, skip_swa: bool = False) -> None:
        if skip_swa:
            # The tail's lock went early, while decoding; the sinks' did not.
            self.local_heads.release_sinks(self.tree_core.node_by_id(req.last_node))
        super()._dec_req_lock(req, skip_swa=skip_swa)

    def _drop_transient(self, req: Any, end: int = 0, is_complete: bool = False) -> None:
        if self.disable or req.last_node is None:
            return
        node = self.tree_core.node_by_id(req.last_node)
        self._free_values(*self.local_heads.drop_transient(node, state_of(req).branch, end, is_complete))

    def segment_used(self, namespace: str | None, tokens: Any, node: Any, whole: bool) -> None:
        """A request has relocated a segment, which counts as a use of it.

        namespace, tokens: of the segment's path, as in `lock_path`.
        node: its last node, as `lock_path` returns it.
        whole: whether all its tokens were needed in the local class.
        """
        last = self.tree_core.node_by_id(node)
        mark_document(last)
        used = nodes_used(self, last, (), whole, 0)
        self._use(RadixKey(tokens, namespace), *used)

    def _count(self, req: Any, tokens: Any) -> None:
        """A request's prompt, or all of it, was put into the tree. tokens: of its path."""
        if self.disable or req.last_node is None:
            return
        state, key = state_of(req), RadixKey(tokens, req.extra_key)
        key = key if state.plan is None else _planned(state.plan, key)
        first = state.counted == 0
        # It went on from the first of these, and leaves a tail at the other for those that come after it.
        boundaries = (state.start, state.branch) if first else ()
        used = nodes_used(self, self.tree_core.node_by_id(req.last_node), boundaries, state.whole, state.counted)
        if first:
            state.worth = None if state.plan is None else state.start
        state.worth = self._use(key if first and state.identity is None else None, *used, found=state.worth)
        state.counted = len(key)

    def _use(
        self, key: RadixKey | None, passed: Sequence[Any], ended: Sequence[Any], found: int | None = None
    ) -> int | None:
        """Note a use of nodes.

        key: of the path that comes, as the logical clock sees it; None for no time that passes.
        found: of a segmented request's own path, the position up to which it counts if such paths do not; None for any other path.
        Returns the position up to which the use counts, None for all.
        """
        if key is not None:
            self.ages.admit(len(key))
        self.ages.use(passed, ended)
        if self.keeper is not None:
            if key is not None:
                found = self.keeper.admit(key.token_ids[: len(key)], key.extra_key, found)
            self.keeper.use(passed, ended, found)
            for component in self.components.values():
                component.offer_noted()
        return found

    def _save(self, req: Any) -> None:
        """Give the host tier what it should have of a request's path.

        The path of a segmented request is of use to a prompt of the very same beginning only. Of it as much is copied as a second one
        has gone on from, which may be no more than the lead that all prompts have; or all, where such paths count as used
        (`own_paths.py`).
        """
        state = state_of(req)
        if self.disable or not self.has_host_tier or (state.plan is not None and not state.start):
            self._wanted.clear()
            return
        self._save_path(req.last_node, None if state.plan is None else state.worth)

    def check_hicache_events(self) -> None:
        """Called in each step of the scheduler with a host tier: see what copies are done, and what turns cold."""
        super().check_hicache_events()
        if self.cooling is not None:
            self.cooling.step()

    def evict(self, params: Any) -> Any:
        """Make room on the device. Parameters and result are SGLang's."""
        with self.ages.evicting():
            return super().evict(params)

    def evict_host(self, num_tokens: int, component_type: Any = ComponentType.FULL) -> int:
        """Make room on the host in one head class. Parameters are SGLang's; returns the slots freed in that class."""
        with self.ages.evicting():
            return super().evict_host(num_tokens, component_type)

    def _slots_changed(self) -> None:
        for listener in self.listeners:
            listener.slots_changed()


def _planned(plan: Plan, key: RadixKey) -> RadixKey:
    """The key of a segmented request's path: in its plan's namespace, with marks where segments begin."""
    return RadixKey(plan.key(key.token_ids), (key.extra_key or "") + plan.identity, limit=key.limit)


def windows(cache: Any) -> tuple[int, int, int]:
    """Three numbers of local slots: those of one window, those that decoding adds at most, and those that a running
    sequence holds at most.
    """
    pool = cache.token_to_kv_pool_allocator.get_kvcache()
    head_map, draft = pool.whole_map, pool.draft
    if head_map.all_global:
        return (UNBOUNDED_WINDOW,) * 3
    return head_map.window, decode_window(head_map, draft), local_slots_per_sequence(head_map, draft)
