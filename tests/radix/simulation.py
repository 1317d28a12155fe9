# SPDX-License-Identifier: Apache-2.0
"""A scheduler in miniature over the real tree, allocator and pools, in which a slot remembers whose KV it holds.

Instead of keys and values a slot stores the token prefix it was computed from. Before rows are "computed" the
simulation checks what attention would read: for global heads every earlier position, for local heads the window and
the sinks. So a wrong mapping, a slot freed too early or a bad match fails at the step that causes it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from importlib import import_module

import torch
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from redknot_sglang.heads import HeadMap
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.radix.cache import HeadClassRadixCache
from tests.radix.calls import Calls, SimulatedRequest
from tests.versions import IS_ADAPTED

# Imported by name: the other one's SGLang is not installed.
CALLS: type[Calls] = import_module("tests.radix.calls_v0_5_23").KvCalls if IS_ADAPTED else Calls


class OutOfSlots(RuntimeError):
    """The pools cannot take the step, not even after eviction."""


class Simulation:
    """Pools of the given sizes under one head map with window and sink, and an eviction policy; on one of `ranks`, of which the
    first has all global heads and the second all local ones.
    """

    def __init__(
        self,
        global_slots: int,
        local_slots: int,
        window: int,
        sink: int,
        requests: int = 16,
        policy: str = "lru",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        registries.register()
        heads = HeadMap(1, 2, ((True, False),), window, sink)
        self.window, self.sink = window, sink
        self.pool = HeadClassPool(global_slots, local_slots, heads, 1, torch.float32, "cpu", rank=rank, ranks=ranks)
        self.allocator = SWATokenToKVPoolAllocator(
            global_slots, local_slots, 1, torch.float32, "cpu", self.pool, need_sort=False
        )
        self.rows = ReqToTokenPool(requests, 4096, "cpu", enable_memory_saver=False)
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            page_size=1,
            sliding_window_size=window,
            eviction_policy=policy,
        )
        self.params = params
        self.tree = HeadClassRadixCache(params)
        self.calls = CALLS(self.tree, self.rows)
        self.running: list[SimulatedRequest] = []
        self.global_content: dict[int, tuple[int, ...]] = {}
        self.local_content: dict[int, tuple[int, ...]] = {}
        self._free_rows = list(range(1, requests + 1))

    # ---- steps of a request ---------------------------------------------------------------------------------------

    def admit(self, prompt: Sequence[int], extra_key: str | None = None, whole: bool = False) -> SimulatedRequest:
        """Match and lock; nothing is computed yet. whole: all positions of the path stay live."""
        req = CALLS.request(array("q", prompt), self._free_rows.pop(), extra_key=extra_key)
        req.redknot.whole = whole
        self._start(req)
        self.running.append(req)
        return req

    def _start(self, req: SimulatedRequest) -> None:
        ids = req.ids
        key = RadixKey(ids, req.extra_key, limit=len(ids) - 1)
        match = self.tree.match_prefix(MatchPrefixParams(key=key, req=req))
        self.calls.start(req, match)
        req.prefix_indices = match.device_indices
        req.computed = req.cache_protected_len = len(match.device_indices)
        req.decoded = 0
        req.redknot.start = req.redknot.start or req.computed
        req.cached_tokens = req.computed
        self.rows.write((req.req_pool_idx, slice(0, req.computed)), match.device_indices)

    def prefill(self, req: SimulatedRequest, rows: int, finish: bool = False) -> None:
        """Compute up to `rows` more positions and cache them, as a chunk or, at the end of the prompt, for good.

        finish: the request ends with its prompt, as one for a single token does.
        """
        end = min(len(req.ids), req.computed + rows)
        self._compute(req, end)
        if finish and end == len(req.ids):
            self.finish(req)
            return
        self.calls.cache_chunk(req)

    def decode(self, req: SimulatedRequest, token: int, maintain: bool) -> None:
        """Append a token and compute its row; `maintain`: free what left the window first."""
        assert req.computed == len(req.ids)
        if maintain:
            self.calls.free_window(req, self.window)
        req.output_ids.append(token)
        try:
            self._compute(req, len(req.ids))
        except OutOfSlots:
            req.output_ids.pop()
            raise
        req.decoded += 1

    def release_tail(self, req: SimulatedRequest) -> None:
        """What SGLang may do once decoding has moved one window past the prompt."""
        if req.decoded >= self.window:
            self.calls.release_tail(req)

    def finish(self, req: SimulatedRequest, insert: bool = True) -> None:
        """End the request; without `insert` as an abort does."""
        self._hand_back(req, insert)
        self._free_rows.append(req.req_pool_idx)
        self.running.remove(req)

    def retract(self, req: SimulatedRequest) -> None:
        """Throw the request's KV away and start it again."""
        self._hand_back(req, insert=False)
        self._start(req)

    def evict(self, global_slots: int, local_slots: int) -> None:
        """Ask the tree for free slots."""
        self.tree.evict(EvictParams(num_tokens=global_slots, swa_num_tokens=local_slots))

    def _hand_back(self, req: SimulatedRequest, insert: bool) -> None:
        self.calls.end(req, insert)

    def _compute(self, req: SimulatedRequest, end: int) -> None:
        start, needed = req.computed, end - req.computed
        self.evict(
            max(0, needed - self.allocator.full_available_size()), max(0, needed - self.allocator.swa_available_size())
        )
        slots = self.allocator.alloc(needed)
        if slots is None:
            raise OutOfSlots
        self.rows.write((req.req_pool_idx, slice(start, end)), slots)
        req.computed = req.kv.kv_allocated_len = end
        local = self.pool.translate_loc_from_full_to_swa(slots)
        for position, (slot, local_slot) in enumerate(zip(slots.tolist(), local.tolist(), strict=True), start):
            self.global_content[slot] = self.local_content[local_slot] = tuple(req.ids[: position + 1])
        self._check_reads(req, start, end)

    # ---- checks ---------------------------------------------------------------------------------------------------

    def _check_reads(self, req: SimulatedRequest, first_row: int, end: int) -> None:
        slots = self.rows.req_to_token[req.req_pool_idx, :end].long()
        local = self.pool.translate_loc_from_full_to_swa(slots).tolist()
        window_start = max(0, first_row - self.window + 1)
        for position, slot in enumerate(slots.tolist()):
            prefix = tuple(req.ids[: position + 1])
            assert self.global_content[slot] == prefix, f"global KV of position {position} is not this request's"
            if position >= window_start or position < self.sink:
                assert local[position] > 0, f"position {position} has no local slot; rows {first_row}..{end}"
                assert self.local_content[local[position]] == prefix, f"local KV of position {position} is another's"

    def check_conservation(self) -> None:
        """Free + tree + running = all, per class; the tree's own invariants; no slot in two places."""
        UnifiedRadixCache.sanity_check(self.tree)
        owned = [(req.computed - req.cache_protected_len, self._owned_local(req)) for req in self.running]
        for free, evictable, protected, mine, total in (
            (
                self.allocator.full_available_size(),
                self.tree.full_evictable_size(),
                self.tree.full_protected_size(),
                sum(g for g, _ in owned),
                self.allocator.size_full,
            ),
            (
                self.allocator.swa_available_size(),
                self.tree.swa_evictable_size(),
                self.tree.swa_protected_size(),
                sum(n for _, n in owned),
                self.allocator.size_swa,
            ),
        ):
            assert free + evictable + protected + mine == total, (free, evictable, protected, mine, total)
        free_local = self.allocator.swa_attn_allocator.free_pages.tolist()
        mapping = self.pool.full_to_swa_index_mapping
        assert mapping is not None
        mapped = [slot for slot in mapping.tolist() if slot > 0]
        assert len(set(mapped)) == len(mapped) and not set(mapped) & set(free_local), "a local slot has two owners"

    def check_locks(self, ended: SimulatedRequest) -> None:
        """Nothing is locked for a request that has ended, and no other runs."""
        assert self.running == [ended] and self.tree.full_protected_size() == self.tree.swa_protected_size() == 0

    def _owned_local(self, req: SimulatedRequest) -> int:
        frontier = max(req.cache_protected_len, req.kv.swa_evicted_seqlen)
        sinks = max(0, min(self.sink, frontier) - req.cache_protected_len)
        return req.computed - frontier + sinks
