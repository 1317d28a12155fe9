# SPDX-License-Identifier: Apache-2.0
"""Both components of the tree under `--radix-eviction-policy redknot`: they evict by the ranks of `keeper.py`.

SGLang's global class puts all leaves into a heap for each eviction, and its local class walks a list in the order of last
use. Here each class has a heap that stays (`victims.py`), and one more for the host. What may be evicted from now on is noted when
that comes about, and put into the heap between requests.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.spans import Spans
from redknot_sglang.radix.global_heads import GlobalHeads
from redknot_sglang.radix.local_heads import LocalHeads
from redknot_sglang.radix.noted import Noted, NotedLeaves, NotedNodes
from redknot_sglang.radix.uses import Rank
from redknot_sglang.seams.sglang import (
    CacheTransferPhase,
    ComponentType,
    EvictLayer,
    RecoverSWAWithLockedFull,
    SWARebuild,
)

Frees = dict[Any, list[Any]]


class RankedGlobalHeads(GlobalHeads):
    """The global class's component."""

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self.on_device = Noted(self._rank, lambda leaf: leaf in self.tree_core.evictable_device_leaves)
        self.on_host = Noted(self._rank, lambda leaf: leaf in self.tree_core.evictable_host_leaves)
        self._wanted = 0
        self._last: Any = None

    def begin(self) -> None:
        """The tree is empty."""
        for order in (self.on_device, self.on_host):
            order.clear()
        self.tree_core.evictable_device_leaves = NotedLeaves(self.on_device)
        self.tree_core.evictable_host_leaves = NotedLeaves(self.on_host)

    def offer_noted(self) -> None:
        """Put into the heaps what may be evicted since the last call."""
        self.on_device.offer()
        self.on_host.offer()

    def first_to_go(self, count: int, on_host: bool) -> list[Any]:
        """As under other policies, by rank."""
        return (self.on_host if on_host else self.on_device).first(count)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Called when a node is split, before the local class is asked: both halves get its counters."""
        super().redistribute_on_node_split(new_parent, child)
        self.cache.keeper.split(new_parent, child)

    def _rank(self, leaf: Any) -> Rank:
        rank: Rank = self.cache.keeper.global_rank(leaf)
        return rank

    def _evict_device_start(self, request_cnt: int) -> None:
        sizes = self.tree_core.component_evictable_size_, self.tree_core.component_protected_size_
        # Slots that lifetimes have freed are there for the tree as well.
        free = self.cache.token_to_kv_pool_allocator.full_available_size()
        self.cache.keeper.retention.resize(free + sum(size[ComponentType.FULL] for size in sizes))
        self._wanted = request_cnt

    def _evict_device_next_node(self, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees) -> Any:
        self._return_last()
        if tracker[ComponentType.FULL] >= self._wanted:
            return None
        self._last = self.on_device.victims.take()
        return None if self._last is None else self._last.id

    def _evict_device_end(self) -> None:
        self._return_last()

    def _return_last(self) -> None:
        """A leaf whose turn it was and that is still there has to be offered again; the parent of one that went is a new leaf."""
        last, self._last = self._last, None
        if last is not None:
            self.on_device.note(last)
        self.on_device.offer()

    def drive_host_eviction(
        self, num_tokens: int, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees
    ) -> None:
        """Evict leaves from the host, each in both classes, until so many global slots are free."""
        self.on_host.offer()
        while tracker[ComponentType.FULL] < num_tokens and (leaf := self.on_host.victims.take()) is not None:
            self.tree_core._evict_host_leaf(leaf, tracker, device_frees, host_frees)
            # The parent of one that went may be a leaf now.
            self.on_host.offer()


class RankedLocalHeads(LocalHeads):
    """The local class's component."""

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self.on_device = Noted(self._rank, self._may_go)
        self.on_host = Noted(self._rank, self._may_leave_host)
        self._wanted = 0
        self._borders: list[int] = []

    def begin(self) -> None:
        """The tree is empty."""
        for order in (self.on_device, self.on_host):
            order.clear()
        self.tree_core.host_lru_lists[self.component_type].cache = NotedNodes(self.on_host)

    def offer_noted(self) -> None:
        """Put into the heaps what may be evicted since the last call."""
        self.on_device.offer()
        self.on_host.offer()

    def first_to_go(self, count: int, on_host: bool) -> list[Any]:
        """As under other policies, by rank."""
        return (self.on_host if on_host else self.on_device).first(count)

    def commit_insert_component_data(
        self, node: Any, is_new_leaf: bool, params: Any, result: Any, cache_actions: list[Any]
    ) -> None:
        """Called for a new node: split where its tokens stop being known from before, too, and give the parts counters."""
        if not is_new_leaf:
            return
        start, end = result.prefix_len, result.prefix_len + len(node.key)
        keeper = self.cache.keeper
        remembered = keeper.remembered(params.key, start)
        keeper.start_counters(node, start, end, ())
        self._borders = [stop for stop, _ in remembered[-1:]]
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        self._borders = []
        keeper.start_counters(node, start, end, remembered)

    def _edges(self, live: Spans, start: int, end: int) -> list[int]:
        inside = {border for border in self._borders if start < border < end}
        return sorted(inside.union(super()._edges(live, start, end)))

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Called when a node is split: both halves may be evicted if it could."""
        super().redistribute_on_node_split(new_parent, child)
        self.on_device.note(new_parent, child)

    def apply_component_action(self, action: Any) -> None:
        """Do what the tree has decided; a node that becomes live may be evicted."""
        super().apply_component_action(action)
        if isinstance(action, RecoverSWAWithLockedFull | SWARebuild):
            self.on_device.note(self.tree_core.node_by_id(action.node_id))

    def commit_hicache_transfer(self, node: Any, phase: Any, transfers: Any = (), **kwargs: Any) -> None:
        """Note that a copy is on its way; what is loaded may be evicted once it is not locked."""
        super().commit_hicache_transfer(node, phase, transfers, **kwargs)
        if phase is CacheTransferPhase.LOAD_BACK:
            self.on_device.note(*map(self.tree_core.node_by_id, transfers[0].nodes_to_load))

    def _unlock(self, node: Any) -> None:
        super()._unlock(node)
        self.on_device.note(node)

    def _unlock_host(self, node: Any) -> None:
        super()._unlock_host(node)
        self.on_host.note(node)

    def _rank(self, node: Any) -> Rank:
        rank: Rank = self.cache.keeper.local_rank(node)
        return rank

    def _may_go(self, node: Any) -> bool:
        data = node.component_data[ComponentType.SWA]
        return data.value is not None and data.lock_ref == 0

    def _may_leave_host(self, node: Any) -> bool:
        is_cold = self.tree_core.host_lru_lists[self.component_type].in_list(node)
        return is_cold and node.component_data[ComponentType.SWA].host_lock_ref == 0

    def _evict_device_start(self, request_cnt: int) -> None:
        self._wanted = request_cnt
        self.on_device.offer()

    def _evict_device_next_node(self, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees) -> Any:
        """The next leaf, which goes in both classes; what is in the way and is no leaf becomes a tombstone here."""
        victims = self.on_device.victims
        while tracker[ComponentType.SWA] < self._wanted and (node := victims.take()) is not None:
            # Should it not go after all, it is offered again.
            self.on_device.note(node)
            if node in self.tree_core.evictable_device_leaves:
                return node.id
            self.take_away(node, EvictLayer.DEVICE, tracker, device_frees, host_frees)
        return None

    def _evict_device_end(self) -> None:
        self.on_device.offer()

    def drive_host_eviction(
        self, num_tokens: int, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees
    ) -> None:
        """Evict local KV from the host until so many local slots are free there; a leaf goes in both classes."""
        self.on_host.offer()
        while tracker[ComponentType.SWA] < num_tokens and (node := self.on_host.victims.take()) is not None:
            if node in self.tree_core.evictable_host_leaves:
                self.tree_core._evict_host_leaf(node, tracker, device_frees, host_frees)
            else:
                self.take_away(node, EvictLayer.HOST, tracker, device_frees, host_frees)

    def take_away(self, node: Any, layer: Any, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees) -> None:
        """Take a node's local KV away at one end."""
        self.tree_core._evict_component_and_detach_lru(
            node, self, target=layer, tracker=tracker, device_frees=device_frees, host_frees=host_frees
        )
        self.tree_core._cascade_evict(
            node, self, tracker, device_frees=device_frees, host_frees=host_frees, target=layer
        )
