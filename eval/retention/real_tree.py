# SPDX-License-Identifier: Apache-2.0
"""A server's own tree on the CPU, with slots but hardly any bytes in them, to which paths are added as a request's end does."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from redknot_sglang.cpu import install_kernel_stand_in

install_kernel_stand_in()

from sglang.srt.managers.schedule_batch import ReqKvInfo  # noqa: E402
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InitLoadBackParams, MatchPrefixParams  # noqa: E402
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import register_stack_strategy  # noqa: E402
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: E402

from redknot_sglang.heads import HeadMap  # noqa: E402
from redknot_sglang.hooks.v0_5_17 import registries  # noqa: E402
from redknot_sglang.plan.request import RequestState  # noqa: E402
from redknot_sglang.pool.head_class_pool import HeadClassPool  # noqa: E402
from redknot_sglang.pool.host_copies import HostStack  # noqa: E402
from redknot_sglang.pool.sizing import PoolSlots  # noqa: E402
from redknot_sglang.radix.cache import HeadClassRadixCache  # noqa: E402

_ROW = 1  # of the pool of running requests, of which there is one at a time
_STEPS = 4  # of the scheduler between two requests


class RealTree:
    """A tree under one eviction policy.

    slots: of the global class, and of the local class.
    longest: tokens of the longest path.
    window, sink: of the head map.
    host: host slots of both classes; None without a host tier.
    loaded: tokens that came from there.
    """

    def __init__(
        self,
        policy: str,
        slots: tuple[int, int],
        longest: int,
        window: int = 2,
        sink: int = 0,
        cost: Callable[[int], int] | None = None,
        host: tuple[int, int] | None = None,
    ) -> None:
        registries.register()
        pool = self._pool = HeadClassPool(
            *slots, HeadMap(1, 2, ((True, False),), window, sink), 1, torch.float32, "cpu"
        )
        self._allocator = SWATokenToKVPoolAllocator(*slots, 1, torch.float32, "cpu", pool, need_sort=False)
        self._rows = ReqToTokenPool(_ROW + 1, longest + 1, "cpu", enable_memory_saver=False)
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=self._rows,
            token_to_kv_pool_allocator=self._allocator,
            page_size=1,
            sliding_window_size=window,
            eviction_policy=policy,
        )
        self.tree = HeadClassRadixCache(params, cost)
        self.loaded = 0
        if host is not None:
            register_stack_strategy(HostStack(PoolSlots(*host)))
            arguments: Any = SimpleNamespace(
                hicache_storage_backend=None, hicache_storage_backend_extra_config=None,
                hicache_storage_prefetch_policy="timeout", hicache_write_policy="write_through", extra_metric_labels=None,
                served_model_name="m",
            )  # fmt: skip
            self.tree.init_hicache(arguments, params)

    def access(self, tokens: Sequence[int]) -> int:
        """A request with this prompt and no answer; returns how many tokens were reused."""
        ids = array("q", tokens)
        req: Any = SimpleNamespace(
            origin_input_ids=ids, output_ids=array("q"), extra_key=None, cache_salt=None, priority=0, session=None,
            req_pool_idx=_ROW, swa_prefix_lock_released=False, swa_evict_floor=0, skip_lock_node_ids={}, finished_reason=None,
            redknot=RequestState(),
        )  # fmt: skip
        match = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(ids), req=req))
        slots, req.last_node = match.device_indices, match.last_device_node
        if match.host_hit_length or match.swa_host_hit_length:
            slots = self._load(req, match)
        reused = len(slots)
        req.cache_protected_len = req.redknot.start = reused
        req.swa_uuid_for_lock = self.tree.inc_lock_ref(req.last_node).swa_uuid_for_lock
        req.kv = ReqKvInfo(kv_allocated_len=len(ids), swa_evicted_seqlen=0)
        needed = len(ids) - reused
        self.evict(
            max(0, needed - self._allocator.full_available_size()),
            max(0, needed - self._allocator.swa_available_size()),
        )
        if needed:
            new = self._allocator.alloc(needed)
            assert new is not None, f"{needed} tokens do not fit"
            self._rows.write((_ROW, slice(reused, len(ids))), new)
        self._rows.write((_ROW, slice(0, reused)), slots)
        self.tree.cache_finished_req(req, kv_len_to_handle=len(ids))
        if self.tree.has_host_tier:
            self._pool.relocations.run(self._pool, None)
            self._pool.relocations.wait()
            for _ in range(_STEPS):
                self.tree.check_hicache_events()
        return reused

    def _load(self, req: Any, match: Any) -> torch.Tensor:
        """Load what a match found on the host; returns the global slots of what the request goes on from."""
        req.swa_host_hit_length, req.mamba_host_hit_length, req.mamba_pool_idx = match.swa_host_hit_length, 0, None
        first = req.last_node
        lock = self.tree.inc_lock_ref(first)
        params: Any = InitLoadBackParams(match.best_match_node, match.host_hit_length, req=req)
        loaded, req.last_node = self.tree.init_load_back(params)
        self.tree.dec_lock_ref(first, lock.to_dec_params())
        self.loaded += len(loaded)
        return torch.cat([match.device_indices, loaded])

    def evict(self, global_slots: int, local_slots: int) -> None:
        """Ask for free slots."""
        self.tree.evict(EvictParams(num_tokens=global_slots, swa_num_tokens=local_slots))
