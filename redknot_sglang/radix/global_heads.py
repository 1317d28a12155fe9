# SPDX-License-Identifier: Apache-2.0
"""The global class's component of the tree: SGLang's, whose nodes know how long ago they were used."""

from __future__ import annotations

import heapq
from typing import Any

from redknot_sglang.radix.ages import split_ages
from redknot_sglang.radix.stored_marks import split_marks
from redknot_sglang.seams.sglang import EvictLayer, FullComponent


class GlobalHeads(FullComponent):
    """The global class under SGLang's own eviction policies."""

    def commit_insert_component_data(
        self, node: Any, is_new_leaf: bool, params: Any, result: Any, cache_actions: list[Any]
    ) -> None:
        """Called for a new node, before the local class is asked; parameters are SGLang's."""
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        if is_new_leaf:
            self.cache.ages.begin(node)
            self._tell(node)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Called when a node is split, before the local class is asked."""
        super().redistribute_on_node_split(new_parent, child)
        split_ages(new_parent, child)
        split_marks(new_parent, child)
        if self.cache.events is not None:
            self.cache.events.split(new_parent, child)

    def evict_component(
        self, node: Any, device_frees: Any, host_frees: Any, target: Any = EvictLayer.DEVICE
    ) -> tuple[int, int]:
        """Take a node's global KV from the device or the host, or from both. Parameters and result are SGLang's."""
        freed: tuple[int, int] = super().evict_component(node, device_frees, host_frees, target=target)
        self.cache.ages.left(node, self.component_type, *freed)
        self._tell(node)
        return freed

    def commit_hicache_transfer(self, node: Any, phase: Any, transfers: Any = (), **kwargs: Any) -> None:
        """Note that a copy to the host or back is on its way. Parameters are SGLang's."""
        super().commit_hicache_transfer(node, phase, transfers, **kwargs)
        self._tell(node)
        for node_id in transfers[0].nodes_to_load or () if transfers else ():
            self._tell(self.tree_core.node_by_id(node_id))

    def _tell(self, node: Any) -> None:
        """A node's global KV came or went."""
        if self.cache.events is not None:
            self.cache.events.touch(node)

    def first_to_go(self, count: int, on_host: bool) -> list[Any]:
        """The nodes that are evicted next, in order, as far as that is known now; nothing changes.

        count: how many at most.
        on_host: whether from the host; else from the device.
        """
        leaves = self.tree_core.evictable_host_leaves if on_host else self.tree_core.evictable_device_leaves
        return heapq.nsmallest(count, leaves, key=self.tree_core.eviction_strategy.get_priority)
