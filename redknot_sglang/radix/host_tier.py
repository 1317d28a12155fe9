# SPDX-License-Identifier: Apache-2.0
"""The tree's host tier: when KV is copied to the host and back.

*Backing up* copies KV to the host while it stays on the device; evicting a node then only *demotes* it. SGLang backs up while it
inserts. Here that waits until a request's path has been cached wholly, when it is known what of it stays in the local class. A
tail that comes to an old node, at a branch for instance, is then copied by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.plan.request import state_of
from redknot_sglang.radix.events import Events
from redknot_sglang.radix.listeners import Move, TierListener
from redknot_sglang.radix.scope import ALL, Scope
from redknot_sglang.seams.sglang import (
    BackupKV,
    CacheTransferPhase,
    ComponentType,
    InitLoadBackParams,
    UnifiedRadixCache,
)


class HostTierCache(UnifiedRadixCache):
    """SGLang's tree with a host tier for two head classes, which is there once SGLang's `init_hicache` has been called.

    tier_listeners: who is told where KV goes; set by whoever builds the tree.
    events: what routers are told, with --kv-events-config; else None.
    """

    local_heads: Any
    events: Events | None = None
    _scope: Scope

    def __init__(self, params: Any) -> None:
        self.tier_listeners: Sequence[TierListener] = ()
        # Nodes of the path that is being cached which SGLang would back up by now.
        self._wanted: set[int] = set()
        # Global tokens freed on the device, since the process began.
        self._freed: Counter[Move] = Counter()
        super().__init__(params)

    @property
    def has_host_tier(self) -> bool:
        """Whether KV goes to the host before it is evicted."""
        return self.cache_controller is not None

    # ---- to the host ----------------------------------------------------------------------------------------------

    def _execute_and_commit_kv_backup(self, action: Any, write_back: bool = False) -> int:
        # SGLang's order to back up a node and those above it; carried out by `_save_path`.
        self._wanted.add(action.node_ids[-1])
        return 0

    def _save_path(self, node_id: int, limit: int | None = None) -> bool:
        """Copy to the host what it should have of a path that has just been cached, the beginning first.

        node_id: where the path ends. Nothing is copied behind a node for which the host has no room.
        limit: a position; of nodes that go on behind it nothing is copied. None for none.
        Returns whether anything is being copied.
        """
        wanted, self._wanted = self._wanted, set()
        path, node = [], self.tree_core.node_by_id(node_id)
        while node is not self.tree_core.root_node:
            path.append(node)
            node = node.parent
        path.reverse()
        end = max((at for at, node in enumerate(path, 1) if node.id in wanted), default=0)
        copied, stop = False, 0
        with self.cache_controller.together():
            for at, node in enumerate(path):
                stop += len(node.key)
                if limit is not None and stop > limit:
                    break
                if not node.backuped:
                    is_done = has_begun = at < end and self._copy(node)
                elif self.local_heads.lacks_copy(node):
                    is_done = has_begun = self._copy_local(node)
                else:
                    is_done, has_begun = True, False
                copied = copied or has_begun
                if not is_done:
                    break
        return copied

    def _copy(self, node: Any) -> bool:
        """Copy a node to the host, its local KV if that stays. Returns whether there was room."""
        kept = self.local_heads.is_kept(node)
        # What is copied is locked until it is there, and no more: part of a chunk must still go when the next one is cached.
        with self._scope.within(span=1 if kept else 0):
            written = super()._execute_and_commit_kv_backup(BackupKV([node.id]))
        if written:
            self._moved(Move.BACKED_UP, len(node.key), len(node.key) if kept else 0)
        return written > 0

    def _copy_local(self, node: Any) -> bool:
        """Copy the local KV of a node whose global KV the host has. Returns whether there was room."""
        if node.write_through_pending_id is not None:
            # Its global KV is still under way, and SGLang knows one copy of a node at a time. The next request will do it.
            return True
        transfers = self.local_heads.build_hicache_transfers(node, CacheTransferPhase.BACKUP_HOST)
        none = torch.empty(0, dtype=torch.int64, device=transfers[0].device_indices.device)
        if self.cache_controller.write(none, node_id=node.id, extra_pools=transfers) is None:
            return False
        self.local_heads.commit_hicache_transfer(node, CacheTransferPhase.BACKUP_HOST, transfers, cache_actions=[])
        with self._scope.within(span=1):
            lock = self.inc_lock_ref(node.id).to_dec_params()
        self._track_write_through_node(node.id, lock)
        self._moved(Move.BACKED_UP, 0, len(node.key))
        return True

    # ---- back to the device ---------------------------------------------------------------------------------------

    def init_load_back(self, params: Any) -> tuple[Any, int]:
        """Load what a request's match found on the host, before its next forward reads it.

        params: SGLang's InitLoadBackParams. Returns what SGLang's admission expects: the global slots behind those that it has,
        int64 [n], or with newer SGLang their number, and its new last node; none and its old one if there is no room.
        """
        whole = state_of(params.req).whole
        with self._scope.within(whole=whole, span=ALL if whole else None):
            found: tuple[Any, int] = super().init_load_back(params)
        return found

    def load_found(self, req: Any) -> Tensor:
        """The same for others than SGLang's admission.

        req: SGLang's Req, already matched; its `last_node` becomes the node that it goes on from, the old one if there is no room.
        Returns the global slots behind those that it has, int64 [n].
        """
        before = req.last_node
        _, req.last_node = self.init_load_back(InitLoadBackParams(req.best_match_node, req.host_hit_length, req=req))
        slots: Tensor = self.tree_core.collect_full_device_indices(req.last_node, before)
        return slots

    def load_back(self, node_id: int, mem_quota: int | None = None, req: Any = None) -> bool:
        """Load a path from the host as far as the rows behind its end see it.

        node_id: where it ends. mem_quota: SGLang's. req: the request that it is for, or None.
        Returns whether there was room.
        """
        node = self.tree_core.node_by_id(node_id)
        local_tokens = sum(len(cold.key) for cold in self.local_heads.cold_above(node))
        global_tokens, above = 0, node
        while above.evicted:
            global_tokens += len(above.key)
            above = above.parent
        # While room is made for it, nothing that it stands on may go, although its own nodes have no slots yet.
        with self._scope.within(over_dead=True):
            is_loaded: bool = super().load_back(node_id, mem_quota, req)
        if is_loaded:
            self._moved(Move.LOADED_BACK, global_tokens, local_tokens)
            if req is not None:
                state_of(req).loaded = global_tokens, local_tokens
        return is_loaded

    def _load_back_transfers(self, **kwargs: Any) -> bool:
        # The first lock, over tombstones, has been taken; the next one finds all loaded.
        with self._scope.within(over_dead=False):
            is_loaded: bool = super()._load_back_transfers(**kwargs)
        return is_loaded

    def loading_check(self, finish_count: int | None = None) -> None:
        """Release what was locked for loads that are done. finish_count: how many, or None to ask the device."""
        if not self.has_host_tier:
            return
        begun = list(self.cache_controller.ack_load_queue)
        super().loading_check(finish_count)
        for ack in begun[: len(begun) - len(self.cache_controller.ack_load_queue)]:
            seconds = self.cache_controller.seconds.popleft()
            if ack.timing_enabled:
                seconds = ack.start_event.elapsed_time(ack.finish_event) / 1000
            for listener in self.tier_listeners:
                listener.loads_done(seconds)

    # ---- eviction -------------------------------------------------------------------------------------------------

    def evict(self, params: Any) -> Any:
        """Make room on the device. Parameters and result are SGLang's."""
        before, local_before = self._freed.copy(), self.local_heads.freed.copy()
        result = super().evict(params)
        for move in (Move.DEMOTED, Move.DROPPED):
            self._moved(move, self._freed[move] - before[move], self.local_heads.freed[move] - local_before[move])
        return result

    def _evict_device_leaf(self, node_id: int, tracker: dict[Any, int]) -> Any:
        node = self.tree_core.node_by_id(node_id)
        self._freed[Move.DEMOTED if node.backuped else Move.DROPPED] += len(node.key)
        return super()._evict_device_leaf(node_id, tracker)

    def evict_host(self, num_tokens: int, component_type: Any = ComponentType.FULL) -> int:
        """Make room on the host in one head class. Parameters are SGLang's; returns the slots freed in that class."""
        pools = [entry.host_pool for entry in self.host_pool_group.entries]
        before = [pool.available_size() for pool in pools]
        freed: int = super().evict_host(num_tokens, component_type)
        global_tokens, local_tokens = (pool.available_size() - size for pool, size in zip(pools, before, strict=True))
        self._moved(Move.HOST_DROPPED, global_tokens, local_tokens)
        return freed

    def _moved(self, move: Move, global_tokens: int, local_tokens: int) -> None:
        if global_tokens or local_tokens:
            for listener in self.tier_listeners:
                listener.kv_moved(move, global_tokens, local_tokens)
