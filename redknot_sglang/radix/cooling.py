# SPDX-License-Identifier: Apache-2.0
"""Lifetimes: with a host tier, what nobody has used for long leaves the device before room is short.

Where a pool is nearly full, nodes turn cold between requests, in the order in which they would be evicted: as long as it is above
the watermark, and as long as the next node's lifetime is over (`Retention.is_over`). Only KV that the host has a copy of is freed, so
what a request finds stays the same; it is loaded and not read at once. What makes room then finds slots that are free.

A step does little, and where it found nothing to do the next ones wait until the logical clock has moved. There is no other time, so
all tensor-parallel ranks do the same in the same step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from redknot_sglang.radix.listeners import Move
from redknot_sglang.seams.sglang import ComponentType, EvictLayer

WATERMARK = 9, 10  # share of a pool in use above which nodes turn cold: numerator and denominator
_NODES = 8  # that turn cold in one step, in each class
_LOOKS = 24  # nodes looked at for that: some have no copy on the host


class Cooling:
    """Turns nodes of one tree cold.

    tree: the HeadClassRadixCache, under the eviction policy `redknot`.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.watermark = WATERMARK
        # Of each class, when the last step found nothing to do.
        self._idle_at: dict[Any, int] = {}

    def step(self) -> None:
        """Turn a few nodes cold if a pool is nearly full."""
        tree = self._tree
        allocator, local = tree.token_to_kv_pool_allocator, tree.local_heads
        before = tree._freed[Move.DEMOTED], local.freed[Move.DEMOTED]
        for kind, size, free in (
            (ComponentType.FULL, allocator.size_full, allocator.full_available_size),
            (ComponentType.SWA, allocator.size_swa, allocator.swa_available_size),
        ):
            if self._idle_at.get(kind) != tree.ages.now and self._is_above(size, free()):
                with tree.ages.evicting():
                    self._cool(kind, size, free)
        tree._moved(Move.COOLED, tree._freed[Move.DEMOTED] - before[0], local.freed[Move.DEMOTED] - before[1])

    def _is_above(self, size: int, free: int) -> bool:
        numerator, denominator = self.watermark
        return bool((size - free) * denominator > size * numerator)

    def _cool(self, kind: Any, size: int, free: Any) -> None:
        order = self._tree.components[kind].on_device
        order.offer()
        aside, cooled = [], 0
        for _ in range(_LOOKS):
            node = order.victims.take()
            if node is None:
                break
            if node.component_data[kind].host_value is None or not self._may_cool(node, kind):
                aside.append(node)
                if node.component_data[kind].host_value is None:
                    continue
                break
            self._free(node, kind)
            order.offer()
            cooled += 1
            if cooled == _NODES or not self._is_above(size, free()):
                break
        order.note(*aside)
        order.offer()
        if not cooled:
            self._idle_at[kind] = self._tree.ages.now

    def _may_cool(self, node: Any, kind: Any) -> bool:
        """Whether a node's lifetime is over: in both classes for a leaf, which goes in both."""
        keeper = self._tree.keeper
        is_leaf = node in self._tree.tree_core.evictable_device_leaves
        if is_leaf and not keeper.retention.is_over(keeper.global_uses(node)):
            return False
        has_local = node.component_data[ComponentType.SWA].value is not None
        return not has_local or bool(keeper.retention.is_over(keeper.local_uses(node)))

    def _free(self, node: Any, kind: Any) -> None:
        tree = self._tree
        if node in tree.tree_core.evictable_device_leaves:
            tree._evict_device_leaf(node.id, dict.fromkeys(tree.tree_components, 0))
            return
        frees: tuple[Any, Any] = defaultdict(list), defaultdict(list)
        tree.local_heads.take_away(node, EvictLayer.DEVICE, defaultdict(int), *frees)
        tree._free_values(*frees)
