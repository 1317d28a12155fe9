# SPDX-License-Identifier: Apache-2.0
"""The prefix cache over head classes: SGLang's unified radix cache with `LocalHeads` as its second component."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from time import monotonic
from typing import Any

from torch import Tensor

from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.request import state_of
from redknot_sglang.pool.sizing import decode_window, local_slots_per_sequence
from redknot_sglang.radix.listeners import Listener
from redknot_sglang.radix.local_heads import LocalHeads
from redknot_sglang.radix.paths import free_unheld
from redknot_sglang.radix.scope import ALL
from redknot_sglang.seams.model_config import UNBOUNDED_WINDOW
from redknot_sglang.seams.sglang import (
    ComponentType,
    InsertParams,
    InsertResult,
    MatchPrefixParams,
    MatchResult,
    RadixKey,
    SWAChunkCache,
    UnifiedRadixCache,
)

# A check of the whole tree may take this part of an idle scheduler's time.
_CHECKING = 0.05


class HeadClassRadixCache(UnifiedRadixCache):
    """Nodes carry global slots for all tokens and local slots for sinks and tails.

    listeners: who is told what happens here; set by whoever builds the tree.
    """

    def __init__(self, params: Any) -> None:
        params.tree_components = (ComponentType.FULL, ComponentType.SWA)
        params.component_registry_override = {ComponentType.SWA: LocalHeads}
        super().__init__(params)
        self.local_heads: LocalHeads = self.components[ComponentType.SWA]
        self.local_window, self.decode_window, self._budget_window = _windows(self)
        self.listeners: Sequence[Listener] = ()
        self._scope = self.local_heads.scope
        self._next_check = 0.0

    @property
    def local_reach(self) -> tuple[int, int]:
        """Window and sink: the tokens whose local slots a sequence needs to go on."""
        return self.local_heads.window, self.local_heads.sink

    @property
    def sliding_window_size(self) -> int:
        """Local slots that one sequence can hold, which is what the scheduler's budgets need to know."""
        return self._budget_window

    def sanity_check(self) -> None:
        """Check the whole tree, now and then.

        SGLang asks for it whenever it is idle. It takes longer the more the tree holds (4 ms at a few hundred nodes), and a
        request that arrives meanwhile waits for it. Raises AssertionError with what is wrong.
        """
        begin = monotonic()
        if begin >= self._next_check:
            super().sanity_check()
            end = monotonic()
            self._next_check = end + (end - begin) / _CHECKING

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Longest reusable prefix; notes on the request where known tokens go on without a tail."""
        req = params.req
        state = None if req is None else state_of(req)
        meant = {} if state is None else {"plan": state.plan, "whole": state.whole}
        with self._scope.within(**meant):
            plan = self._scope.now.plan
            if plan is not None:
                params = dataclasses.replace(params, key=_planned(plan, params.key))
            result = super().match_prefix(params)
        if state is not None:
            matched = len(result.device_indices)
            state.branch = result.full_kv_hit_length if result.full_kv_hit_length > matched else 0
            req.swa_evict_floor = self.local_heads.sink
        return result

    def insert(self, params: InsertParams) -> InsertResult:
        """Insert a request's path; that of a segmented request goes under its plan's identity."""
        plan = self._scope.now.plan
        if plan is not None:
            params.key = _planned(plan, params.key)
        return super().insert(params)

    def lock_path(self, key: Any, extra_key: str | None, whole: bool) -> tuple[Tensor, Any, Any] | None:
        """Lock a path if all of it is there: its global slots, int64 [tokens], its last node and the lock; else None.

        whole: every position must be live in the local class, too, and is locked there.
        """
        with self._scope.within(whole=whole):
            match = self.match_prefix(MatchPrefixParams(key=RadixKey(key, extra_key)))
        if len(match.device_indices) != len(key):
            return None
        with self._scope.within(span=ALL if whole else None):
            return match.device_indices, match.last_device_node, self.inc_lock_ref(match.last_device_node)

    def free_path(self, key: RadixKey, held: Set[int]) -> int:
        """Free what nobody else holds of a path, see `free_unheld`; returns its tokens."""
        freed = free_unheld(self, key, held)
        self._slots_changed()
        return freed

    def cache_unfinished_req(self, req: Any, chunked: bool = False, **kwargs: Any) -> None:
        """Put the computed part into the tree, keep the request's lock on it, drop its former chunk boundaries."""
        state, window = state_of(req), self.local_heads.window
        # Rows of a chunk in flight look back one window from its first row, so the lock covers all of that.
        span = window + len(req.get_fill_ids()) - req.cache_protected_len if chunked else window
        span = ALL if state.whole else span
        over_dead = chunked and bool(state.dead)
        with self._scope.within(plan=state.plan, span=span, own_path=chunked, over_dead=over_dead):
            super().cache_unfinished_req(req, chunked=chunked, **kwargs)
        self._drop_transient(req)
        self._slots_changed()

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int, **kwargs: Any) -> None:
        """Hand the request's KV to the tree and release its lock."""
        with self._scope.within(plan=state_of(req).plan):
            super().cache_finished_req(req, is_insert, kv_len_to_handle=kv_len_to_handle, **kwargs)
        # A request that ends with its prompt never had its tail locked.
        self._drop_transient(req, kv_len_to_handle if is_insert else 0)
        for listener in self.listeners:
            listener.request_ended(req)
        self._slots_changed()

    def _dec_req_lock(self, req: Any, *, skip_swa: bool = False) -> None:
        if skip_swa:
            # The tail's lock went early, while decoding; the sinks' did not.
            self.local_heads.release_sinks(self.tree_core.node_by_id(req.last_node))
        super()._dec_req_lock(req, skip_swa=skip_swa)

    def _drop_transient(self, req: Any, end: int = 0) -> None:
        if self.disable or req.last_node is None:
            return
        node = self.tree_core.node_by_id(req.last_node)
        self._free_values(*self.local_heads.drop_transient(node, state_of(req).branch, end))

    def _slots_changed(self) -> None:
        for listener in self.listeners:
            listener.slots_changed()


def _planned(plan: Plan, key: RadixKey) -> RadixKey:
    """A plain key as one of the plan's namespace, with segment borders marked."""
    return RadixKey(plan.key(key.token_ids), (key.extra_key or "") + plan.identity, limit=key.limit)


class HeadClassChunkCache(SWAChunkCache):
    """No reuse between requests (`--disable-radix-cache`); sinks stay while the window moves."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        self._head_map = pool.head_map
        self.listeners: Sequence[Listener] = ()
        self.local_window, self.decode_window, self.sliding_window_size = _windows(self)

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Nothing is ever reused."""
        if params.req is not None:
            params.req.swa_evict_floor = 0 if self._head_map.all_global else self._head_map.sink
        return super().match_prefix(params)

    def cache_finished_req(self, req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        """Free the request's slots."""
        super().cache_finished_req(req, is_insert, **kwargs)
        for listener in self.listeners:
            listener.request_ended(req)

    @property
    def local_reach(self) -> tuple[int, int]:
        """Window and sink: the tokens whose local slots a sequence needs to go on."""
        return self._head_map.window, self._head_map.sink


def _windows(cache: Any) -> tuple[int, int, int]:
    """Tokens that a row sees, that a decoding sequence adds at most, and that a sequence holds at most."""
    head_map = cache.token_to_kv_pool_allocator.get_kvcache().head_map
    if head_map.all_global:
        return (UNBOUNDED_WINDOW,) * 3
    return head_map.window, decode_window(head_map), local_slots_per_sequence(head_map)
