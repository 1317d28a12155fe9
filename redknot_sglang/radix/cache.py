# SPDX-License-Identifier: Apache-2.0
"""The prefix cache over head classes: SGLang's UnifiedRadixCache, in which `LocalHeads` decides about local slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Set
from contextlib import contextmanager
from time import monotonic
from typing import Any

import numpy as np
from torch import Tensor

from redknot_sglang.plan.options import plan_of
from redknot_sglang.plan.plan import Plan
from redknot_sglang.pool.sizing import decode_window, local_slots_per_sequence
from redknot_sglang.radix.local_heads import ALL, LocalHeads, is_whole
from redknot_sglang.radix.paths import free_unheld
from redknot_sglang.radix.report import report_request
from redknot_sglang.reuse.admission import SegmentAdmission
from redknot_sglang.reuse.isolated import is_isolated
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
    get_parallel,
)
from redknot_sglang.serve.metrics import ClassMetrics, SegmentMetrics

# Share of an idle scheduler's time that checks of the whole tree may take.
_CHECKING = 0.05


class HeadClassRadixCache(UnifiedRadixCache):
    """The tree: nodes have global slots for all tokens, and local slots for sinks and tails.

    params: SGLang's CacheInitParams.
    """

    def __init__(self, params: Any) -> None:
        params.tree_components = (ComponentType.FULL, ComponentType.SWA)
        params.component_registry_override = {ComponentType.SWA: LocalHeads}
        super().__init__(params)
        self.local_heads: LocalHeads = self.components[ComponentType.SWA]
        self.local_window, self.decode_window, self._budget_window = _windows(self)
        metered = bool(params.enable_metrics)
        self._metrics = ClassMetrics(self.token_to_kv_pool_allocator) if metered else None
        # Tensor-parallel ranks each compute a part of the same rows, so only one of them counts rows.
        self._segment_metrics = SegmentMetrics() if metered and get_parallel().tp_rank == 0 else None
        self._plan: Plan | None = None
        self._whole = False
        self.reuse = SegmentAdmission(self)
        self._next_check = 0.0

    @property
    def sliding_window_size(self) -> int:
        """Local slots that one running sequence can hold: the scheduler reads this where it budgets the local pool."""
        return self._budget_window

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

        If more of its tokens are in the tree, but without the tail that reuse needs, `req.redknot_branch` gets how many: an
        earlier request had the same tokens up to there, so a tail there is worth keeping.
        """
        req = params.req
        plan = self._plan if req is None else plan_of(req)
        if plan is not None:
            params = dataclasses.replace(params, key=_planned(plan, params.key))
        with self.local_heads.whole_paths(self._whole if req is None else is_whole(req)):
            result = super().match_prefix(params)
        if req is not None:
            matched = len(result.device_indices)
            req.redknot_branch = result.full_kv_hit_length if result.full_kv_hit_length > matched else 0
            req.swa_evict_floor = self.local_heads.sink
        return result

    def insert(self, params: InsertParams) -> InsertResult:
        """Insert a request's path. That of a segmented request has a namespace of its own, since its KV is approximate."""
        if self._plan is not None:
            params.key = _planned(self._plan, params.key)
        return super().insert(params)

    @contextmanager
    def _under(self, plan: Plan | None) -> Iterator[None]:
        self._plan = plan
        try:
            yield
        finally:
            self._plan = None

    def lock_path(self, key: Any, extra_key: str | None, whole: bool) -> tuple[Tensor, Any, Any] | None:
        """Lock a path, so that nothing of it is evicted, if all of it is in the tree.

        key: its tokens.
        extra_key: its namespace, or None.
        whole: whether all its tokens must have local slots, too, and are locked there.
        Returns its global slots, int64 [tokens], its last node, and what `dec_lock_ref` needs to release it; None if some of
        it is missing.
        """
        self._whole = whole
        match = self.match_prefix(MatchPrefixParams(key=RadixKey(key, extra_key)))
        self._whole = False
        if len(match.device_indices) != len(key):
            return None
        with self.local_heads.locking(ALL if whole else self.local_heads.window, own_path=False):
            return match.device_indices, match.last_device_node, self.inc_lock_ref(match.last_device_node)

    def free_path(self, key: RadixKey, held: Set[int]) -> int:
        """Free what nothing else needs of a path; returns the number of tokens freed. Parameters as in `free_unheld`."""
        freed = free_unheld(self, key, held)
        self._update_metrics()
        return freed

    def cache_unfinished_req(self, req: Any, chunked: bool = False, **kwargs: Any) -> None:
        """After a prefill chunk: put what is computed into the tree, lock it for the request, and let go of what only its
        earlier chunks needed.

        req: SGLang's Req.
        chunked: whether more chunks of its prompt follow.
        """
        window = self.local_heads.window
        # Rows of a chunk in flight look back one window from its first row, so the lock covers all of that.
        span = window + len(req.get_fill_ids()) - req.cache_protected_len if chunked else window
        span = ALL if is_whole(req) else span
        dead = bool(req.__dict__.get("redknot_dead"))
        with self._under(plan_of(req)), self.local_heads.locking(span, own_path=chunked, over_dead=chunked and dead):
            super().cache_unfinished_req(req, chunked=chunked, **kwargs)
        self._drop_transient(req)
        self._update_metrics()

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int, **kwargs: Any) -> None:
        """At a request's end: put prompt and answer into the tree, release its locks, and attach its report.

        req: SGLang's Req.
        is_insert: whether its KV is kept; false for an aborted request.
        kv_len_to_handle: tokens of prompt and answer that have KV.
        """
        with self._under(plan_of(req)):
            super().cache_finished_req(req, is_insert, kv_len_to_handle=kv_len_to_handle, **kwargs)
        # A request that ends with its prompt never had its tail locked.
        self._drop_transient(req, kv_len_to_handle if is_insert else 0)
        self.reuse.sources.ended(req)
        pool = self.token_to_kv_pool_allocator.get_kvcache()
        window, sink = self.local_heads.window, self.local_heads.sink
        report = report_request(req, window, sink, pool.bytes_per_slot, pool.arithmetic)
        if self._segment_metrics is not None and pool.arithmetic is not None:
            if is_isolated(req):
                rows = np.arange(int(req.cached_tokens), len(req.origin_input_ids))
                self._segment_metrics.count_isolated(len(rows), pool.arithmetic.computed(rows))
            elif report is not None:
                self._segment_metrics.count_request(report)
        self._update_metrics()

    def _dec_req_lock(self, req: Any, *, skip_swa: bool = False) -> None:
        if skip_swa:
            # The tail's lock went early, while decoding; the sinks' did not.
            self.local_heads.release_sinks(self.tree_core.node_by_id(req.last_node))
        super()._dec_req_lock(req, skip_swa=skip_swa)

    def _drop_transient(self, req: Any, end: int = 0) -> None:
        if self.disable or req.last_node is None:
            return
        node = self.tree_core.node_by_id(req.last_node)
        self._free_values(*self.local_heads.drop_transient(node, req.redknot_branch, end))

    def _update_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.update(self)


def _planned(plan: Plan, key: RadixKey) -> RadixKey:
    """The key of a segmented request's path: in its plan's namespace, with marks where segments begin."""
    return RadixKey(plan.key(key.token_ids), (key.extra_key or "") + plan.identity, limit=key.limit)


class HeadClassChunkCache(SWAChunkCache):
    """The cache of `--disable-radix-cache`: nothing is reused, but a running request's sink stays while its window moves."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        self._head_map = pool.head_map
        self._cost = pool.bytes_per_slot
        self.local_window, self.decode_window, self.sliding_window_size = _windows(self)

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Finds nothing; notes on the request how many first tokens keep their local slots."""
        if params.req is not None:
            params.req.swa_evict_floor = 0 if self._head_map.all_global else self._head_map.sink
        return super().match_prefix(params)

    def cache_finished_req(self, req: Any, is_insert: bool = True, **kwargs: Any) -> None:
        """Free all slots of a finished request and attach its report."""
        super().cache_finished_req(req, is_insert, **kwargs)
        report_request(req, self._head_map.window, self._head_map.sink, self._cost)


def _windows(cache: Any) -> tuple[int, int, int]:
    """Three numbers of local slots: those of one window, those that decoding adds at most, and those that a running
    sequence holds at most.
    """
    head_map = cache.token_to_kv_pool_allocator.get_kvcache().head_map
    if head_map.all_global:
        return (UNBOUNDED_WINDOW,) * 3
    return head_map.window, decode_window(head_map), local_slots_per_sequence(head_map)
