# SPDX-License-Identifier: Apache-2.0
"""The tree. SGLang 0.5.23 caches requests in one function, `checkpoint`, frees their slots by itself, and keeps locks as objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchResult
from sglang.srt.mem_cache.common import free_swa_out_of_window_slots
from sglang.srt.mem_cache.unified_cache.cache_action import FreeDeviceKV, FreeDeviceKVFullOnly
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.tree_core_registry import get_tree_core_factory, register_tree_core_backend
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore as _Core
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache as _Tree

from redknot_sglang.seams.v0_5_23.adapted.components import outward
from redknot_sglang.seams.v0_5_23.adapted.host_tier import HostTier
from redknot_sglang.seams.v0_5_23.adapted.requests import given_prefix

_CORE = "redknot"


class _Match(MatchResult):
    """A match that knows its slots, as 0.5.17's does: found along its path when they are asked for."""

    tree: Any

    @property
    def device_indices(self) -> Any:
        """int64 [n], the global slots of the prefix that can be reused as it is."""
        return self.tree.path_device_indices(self.last_device_node)[: self.device_prefix_len]


class TreeCore(_Core):
    """The structure of the tree. What our rooms evict has no list of actions; they are carried out at once."""

    def _evict_component_and_detach_lru(
        self,
        node: Any,
        comp: Any,
        device_frees: Any,
        host_frees: Any,
        cache_actions: list[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        with self._carried_out(cache_actions) as actions:
            freed = super()._evict_component_and_detach_lru(node, comp, device_frees, host_frees, actions, **kwargs)
        return freed

    def _cascade_evict(
        self,
        node: Any,
        trigger: Any,
        tracker: Any,
        device_frees: Any,
        host_frees: Any,
        cache_actions: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        with self._carried_out(cache_actions) as actions:
            super()._cascade_evict(node, trigger, tracker, device_frees, host_frees, actions, **kwargs)

    def _evict_host_leaf(
        self, node: Any, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: list[Any] | None = None
    ) -> None:
        with self._carried_out(cache_actions) as actions:
            super()._evict_host_leaf(node, tracker, device_frees, host_frees, actions)

    def commit_load_back(self, node_id: int, device_indices: Any, kv_xfer: Any, comp_xfers: Any) -> list[Any]:
        """Nodes are being loaded. That they lie at both ends SGLang notes when they have come, and its check of the tree, which an idle
        scheduler makes, wants it before: a load may wait for a forward.
        """
        actions: list[Any] = super().commit_load_back(node_id, device_indices, kv_xfer, comp_xfers)
        for loaded in kv_xfer.nodes_to_load:
            self._update_duplicate_tracking(self.node_by_id(loaded))
        return actions

    @contextmanager
    def _carried_out(self, cache_actions: list[Any] | None) -> Iterator[list[Any]]:
        actions: list[Any] = [] if cache_actions is None else cache_actions
        yield actions
        if cache_actions is None and actions:
            self.components[0].cache._apply_cache_actions(actions)


class _Slots(_Tree):
    """What both caches free: global slots, and local ones by what the allocator's mapping says.

    local_window: tokens that a row of local heads sees.
    """

    local_window: int

    @property
    def swa_retain_window(self) -> int:
        """The window that a row sees, by which SGLang frees local slots; `sliding_window_size` is for budgets."""
        return self.local_window

    def is_chunk_cache(self) -> bool:
        """Whether nothing is reused."""
        return bool(self.disable)

    def on_release(self, req: Any, *, checkpointed: bool) -> None:
        """A request's slots have been freed. One that was not cached, or not as a request that ends, ends here."""
        super().on_release(req, checkpointed=checkpointed)
        if not (checkpointed and req.finished()):
            self.cache_finished_req(req, False, kv_len_to_handle=0)

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int, **kwargs: Any) -> None:
        """Put prompt and answer into the tree, and free the other slots and the lock. SGLang would do so a little later; what ours do
        at a request's end counts on it, as in 0.5.17.
        """
        if not is_insert:
            return
        super().checkpoint(req, up_to=kv_len_to_handle, **kwargs)
        self.free_kv_row(req.kv, [(req.kv.cache_protected_len, kv_len_to_handle)])
        # What SGLang frees itself begins here.
        req.kv.cache_protected_len = max(req.kv.cache_protected_len, kv_len_to_handle)
        self.unlock(req.lock)
        req.lock = None

    def free_kv_row(self, kv: Any, ranges: Any) -> None:
        """Free slots that a request owns, by their positions. SGLang would go by the one frontier of a window."""
        row = self.req_to_token_pool.req_to_token[kv.req_pool_idx]
        for start, end in ranges:
            if start < end:
                self._free_both(row[start:end])

    def evict_sliding_windows(self, req: Any, pre_len: int, *, eviction_interval: int = 1) -> None:
        """Free the local slots of a decoding request that have left the window a row sees."""
        free_swa_out_of_window_slots(
            req,
            pre_len,
            sliding_window_size=self.swa_retain_window,
            page_size=self.page_size,
            req_to_token_pool=self.req_to_token_pool,
            token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
            supports_prefix_sharing=self.supports_prefix_sharing(),
            free_segment=self._free_local,
            eviction_interval=eviction_interval,
        )

    def _free_local(self, slots: Any, start_pos: int) -> None:
        """Free the local slots of those global slots that have one. start_pos: SGLang's, not used."""
        allocator, slots = self.token_to_kv_pool_allocator, slots.to(torch.int64)
        allocator.free_swa(slots[allocator.full_to_swa_index_mapping[slots] > 0])

    def _free_both(self, slots: Any) -> None:
        """Free global slots, and the local slots of those that have one; SGLang takes all or none to have one."""
        self._free_local(slots, 0)
        self.token_to_kv_pool_allocator.free_full(slots.to(torch.int64))


class UnifiedRadixCache(HostTier, _Slots):
    """SGLang's tree as 0.5.17 has it.

    caching_chunk: whether what is being cached is a part of a prompt of which more follows.
    """

    local_heads: Any

    def __init__(self, params: Any) -> None:
        if get_tree_core_factory(_CORE) is None:
            register_tree_core_backend(_CORE, TreeCore)
        params.tree_core_backend = _CORE
        params.component_registry_override = {
            kind: outward(component) for kind, component in params.component_registry_override.items()
        }
        self.caching_chunk = False
        super().__init__(params)

    def match_prefix(self, params: Any) -> Any:
        """As in 0.5.17."""
        match = _Match(*super().match_prefix(params))
        match.tree = self
        return match

    def prefix_device_indices(self, req: Any) -> Any:
        """Slots of the prefix of a request that has no row yet: along its path, or those that it was given."""
        given = given_prefix(req)
        return super().prefix_device_indices(req) if given is None else given

    # ---- slots ------------------------------------------------------------------------------------------------------

    def _apply_cache_action(self, action: Any) -> None:
        if isinstance(action, FreeDeviceKV | FreeDeviceKVFullOnly):
            for slots in action.indices:
                self._free_both(slots)
            return
        super()._apply_cache_action(action)

    # ---- SGLang's calls, as 0.5.17's --------------------------------------------------------------------------------

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """A part of a request's prompt, all of it, or the request with its answer is there: cache it."""
        if req.finished():
            self.cache_finished_req(req, True, kv_len_to_handle=up_to, **kwargs)
        else:
            self.caching_chunk = up_to < len(req.full_untruncated_fill_ids)
            self.cache_unfinished_req(req, chunked=self.caching_chunk, **kwargs)
            self.caching_chunk = False

    def unlock(self, lock: Any) -> None:
        """Release a request's lock. If that of its window went early, the sinks' did not."""
        if lock is not None and lock.swa_released and not self.disable:
            self.local_heads.release_sinks(self.tree_core.node_by_id(lock.node))
        super().unlock(lock)

    # ---- 0.5.17's calls of SGLang -----------------------------------------------------------------------------------

    def cache_unfinished_req(self, req: Any, chunked: bool = False, **kwargs: Any) -> None:
        """Put what a request has computed into the tree, and move its lock there."""
        super().checkpoint(req, up_to=req.extend_end, **kwargs)


class SWAChunkCache(_Slots):
    """The cache that reuses nothing: SGLang's tree, switched off.

    sliding_window_size: local slots that a sequence holds at most, for budgets; set by ours.
    """

    def __init__(self, params: Any) -> None:
        params.tree_components = (ComponentType.FULL, ComponentType.SWA)
        self._reported = 0
        super().__init__(params)

    @property
    def sliding_window_size(self) -> int:
        """As above."""
        return self._reported

    @sliding_window_size.setter
    def sliding_window_size(self, slots: int) -> None:
        self._reported = slots

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """Nothing is kept; a request that has ended is told to our listeners."""
        if req.finished():
            self.cache_finished_req(req, True, kv_len_to_handle=up_to, **kwargs)
