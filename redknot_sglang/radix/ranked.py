# SPDX-License-Identifier: Apache-2.0
"""Both components of the tree under `--radix-eviction-policy redknot`: they evict by the ranks of `keeper.py`.

SGLang's global class puts all leaves into a heap for each eviction, and its local class walks a list in the order of last
use. Here each class has a heap that stays (`victims.py`). What may be evicted from now on is noted when that comes about, and
put into the heap between requests.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.spans import Spans
from redknot_sglang.radix.keeper import Keeper, split_counters
from redknot_sglang.radix.local_heads import LocalHeads
from redknot_sglang.radix.uses import Rank
from redknot_sglang.radix.victims import Victims
from redknot_sglang.seams.sglang import (
    ComponentType,
    EvictLayer,
    FullComponent,
    RecoverSWAWithLockedFull,
    SWARebuild,
)

Frees = dict[Any, list[Any]]


class _NotedLeaves(set[Any]):
    """The tree's set of leaves that may be evicted, which notes what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[Any, None] = {}

    def add(self, leaf: Any) -> None:
        super().add(leaf)
        self.noted[leaf] = None


class RankedGlobalHeads(FullComponent):
    """The global class's component."""

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self._victims: Victims[Any] = Victims(self._rank, self._may_go)
        self._leaves = _NotedLeaves()
        self._wanted = 0
        self._last: Any = None

    def begin(self) -> None:
        """The tree is empty."""
        self._victims.clear()
        self._leaves = self.tree_core.evictable_device_leaves = _NotedLeaves()

    def offer_noted(self) -> None:
        """Put into the heap what may be evicted since the last call."""
        noted, self._leaves.noted = self._leaves.noted, {}
        for leaf in noted:
            if leaf in self._leaves:
                self._victims.offer(leaf)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Called when a node is split, before the local class is asked: both halves get its counters."""
        super().redistribute_on_node_split(new_parent, child)
        split_counters(new_parent, child)

    def _rank(self, leaf: Any) -> Rank:
        keeper: Keeper = self.cache.keeper
        return keeper.global_rank(leaf)

    def _may_go(self, leaf: Any) -> bool:
        return leaf in self._leaves

    def _evict_device_start(self, request_cnt: int) -> None:
        sizes = self.tree_core.component_evictable_size_, self.tree_core.component_protected_size_
        self.cache.keeper.retention.resize(sum(size[ComponentType.FULL] for size in sizes))
        self._wanted = request_cnt

    def _evict_device_next_node(self, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees) -> Any:
        self._return_last()
        if tracker[ComponentType.FULL] >= self._wanted:
            return None
        self._last = self._victims.take()
        return None if self._last is None else self._last.id

    def _evict_device_end(self) -> None:
        self._return_last()

    def _return_last(self) -> None:
        """A leaf whose turn it was and that is still there has to be offered again; the parent of one that went is a new leaf."""
        last, self._last = self._last, None
        if last is not None and last in self._leaves:
            self._leaves.noted[last] = None
        self.offer_noted()


class RankedLocalHeads(LocalHeads):
    """The local class's component."""

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self._victims: Victims[Any] = Victims(self._rank, self._may_go)
        self._noted: dict[Any, None] = {}
        self._wanted = 0
        self._borders: list[int] = []

    def begin(self) -> None:
        """The tree is empty."""
        self._victims.clear()
        self._noted.clear()

    def offer_noted(self) -> None:
        """Put into the heap what may be evicted since the last call."""
        noted, self._noted = self._noted, {}
        for node in noted:
            if self._may_go(node):
                self._victims.offer(node)

    def commit_insert_component_data(
        self, node: Any, is_new_leaf: bool, params: Any, result: Any, cache_actions: list[Any]
    ) -> None:
        """Called for a new node: split where its tokens stop being known from before, too, and give the parts counters."""
        if not is_new_leaf:
            return
        start, end = result.prefix_len, result.prefix_len + len(node.key)
        keeper: Keeper = self.cache.keeper
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
        self._noted.update({new_parent: None, child: None})

    def apply_component_action(self, action: Any) -> None:
        """Do what the tree has decided; a node that becomes live may be evicted."""
        super().apply_component_action(action)
        if isinstance(action, RecoverSWAWithLockedFull | SWARebuild):
            self._noted[self.tree_core.node_by_id(action.node_id)] = None

    def _unlock(self, node: Any) -> None:
        super()._unlock(node)
        self._noted[node] = None

    def _rank(self, node: Any) -> Rank:
        keeper: Keeper = self.cache.keeper
        return keeper.local_rank(node)

    def _may_go(self, node: Any) -> bool:
        data = node.component_data[ComponentType.SWA]
        return data.value is not None and data.lock_ref == 0

    def _evict_device_start(self, request_cnt: int) -> None:
        self._wanted = request_cnt
        self.offer_noted()

    def _evict_device_next_node(self, tracker: dict[Any, int], device_frees: Frees, host_frees: Frees) -> Any:
        """The next leaf, which goes in both classes; what is in the way and is no leaf becomes a tombstone here."""
        while tracker[ComponentType.SWA] < self._wanted and (node := self._victims.take()) is not None:
            # Should it not go after all, it is offered again.
            self._noted[node] = None
            if node in self.tree_core.evictable_device_leaves:
                return node.id
            self.tree_core._evict_component_and_detach_lru(
                node, self, target=EvictLayer.DEVICE, tracker=tracker, device_frees=device_frees, host_frees=host_frees
            )
            self.tree_core._cascade_evict(node, self, tracker, device_frees=device_frees, host_frees=host_frees)
        return None

    def _evict_device_end(self) -> None:
        self.offer_noted()
