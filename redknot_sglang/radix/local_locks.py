# SPDX-License-Identifier: Apache-2.0
"""Locks on local slots: what a running request will still read must not be evicted.

A request locks the path of its prompt at the node where it ends. In the global class SGLang then locks the whole path. In
the local class only two things are locked: the live tokens up to one window before that node, and the sinks. SGLang
releases the window's lock as decoding moves on; the sinks are read until the request ends, so they have a lock of their
own. Two kinds of path are locked farther back than a window: chunks that are still being computed, and segments under
`blend`, of which any row may be read.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from redknot_sglang.radix.scope import Scope
from redknot_sglang.seams.sglang import (
    FreeComponentDeviceSlot,
    RecoverSWAWithLockedFull,
    SWAComponent,
    SWARebuild,
    next_component_uuid,
)

# Marks of nodes, kept in the component's metadata.
SINK = "sink"  # the node lies in the first S positions
TRANSIENT = "transient"  # part of a chunk that no other request has locked, so it goes when the next chunk is cached


def unmap(mapping: Tensor, slots: Tensor) -> None:
    """Note that global slots have no local slot any more.

    mapping: int64, local slot of each global slot, changed in place.
    slots: int64 [n], global slots.
    """
    # `mapping[slots] = 0` would do the same, but copy the 0 to the device and wait for it.
    mapping.index_fill_(0, slots, 0)


class LocalLocks(SWAComponent):
    """The part of the local class's tree component that locks and unlocks nodes, and frees local slots.

    credits_unlocked_only: whether SGLang counts a node that becomes live as evictable although it is locked.
    """

    credits_unlocked_only: bool = getattr(SWAComponent, "credits_unlocked_only", True)

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        head_map = params.token_to_kv_pool_allocator.get_kvcache().whole_map
        self.sink: int = 0 if head_map.all_global else head_map.sink
        self.window: int = self.sliding_window_size
        self.scope = Scope()

    def acquire_component_lock(self, node: Any, result: Any, lock_host: bool = False) -> Any:
        """Lock the live tokens before the end of `node`, up to one window back, and the sinks of its path.

        The uppermost node that is locked carries a uuid, which goes into `result`: it marks where release stops. If that
        node is split, the upper half takes the uuid over.

        node: where the request's path ends.
        result: gets `swa_uuid_for_lock`, which release needs.
        lock_host: see `LocalHost`; False here.
        """
        covered, uppermost, current = 0, None, node
        span = self.window if self.scope.now.span is None else self.scope.now.span
        while covered < span and (self._in_tail(current) or self._dead_in_span(current)):
            self._lock(current)
            covered += len(current.key)
            uppermost, current = current, current.parent
        for sink in self._sinks_above(node):
            is_live = sink.component_data[self.component_type].value is not None
            assert is_live or self.scope.now.over_dead, f"sink node {sink.id} is not live"
            self._lock(sink)
        result.swa_uuid_for_lock = None
        if uppermost is not None:
            marks = uppermost.component_data[self.component_type].metadata
            if marks.get("uuid") is None:
                marks["uuid"] = next_component_uuid()
            result.swa_uuid_for_lock = marks["uuid"]
        return result

    def release_component_lock(self, node: Any, params: Any, lock_host: bool = False) -> None:
        """Release what `acquire_component_lock` locked at `node`; `params` carries the uuid."""
        self._release_tail(node, params.swa_uuid_for_lock if params else None)
        self.release_sinks(node)

    def release_window_lock(self, node: Any, swa_uuid_for_lock: int | None, device_frees: Any, host_frees: Any) -> None:
        """Release the window's lock only: decoding has moved past it. The sinks are still read."""
        self._release_tail(node, swa_uuid_for_lock)

    def release_sinks(self, node: Any) -> None:
        """Release the sinks of the path that ends at `node`."""
        for sink in self._sinks_above(node):
            self._unlock(sink)

    def _release_tail(self, node: Any, uuid: int | None) -> None:
        current = node
        while uuid is not None:
            assert current is not self.tree_core.root_node, f"no node carries lock {uuid}"
            self._unlock(current)
            if current.component_data[self.component_type].metadata.get("uuid") == uuid:
                return
            current = current.parent

    def _in_tail(self, node: Any) -> bool:
        data = node.component_data[self.component_type]
        return node is not self.tree_core.root_node and data.value is not None and not data.metadata.get(SINK)

    def _dead_in_span(self, node: Any) -> bool:
        marks = node.component_data[self.component_type].metadata
        return self.scope.now.over_dead and node is not self.tree_core.root_node and not marks.get(SINK)

    def _sinks_above(self, node: Any) -> list[Any]:
        sinks = []
        while self.sink and node is not self.tree_core.root_node:
            if node.component_data[self.component_type].metadata.get(SINK):
                sinks.append(node)
            node = node.parent
        return sinks

    def _lock(self, node: Any) -> None:
        data = node.component_data[self.component_type]
        if data.lock_ref == 0 and data.value is not None:
            self._protect(len(node.key))
        data.lock_ref += 1
        if not self.scope.now.own_path:
            data.metadata.pop(TRANSIENT, None)

    def _unlock(self, node: Any) -> None:
        data = node.component_data[self.component_type]
        assert data.lock_ref > 0, f"node {node.id} is not locked"
        data.lock_ref -= 1
        if data.lock_ref == 0 and data.value is not None:
            self._protect(-len(node.key))
        if data.lock_ref == 0:
            # SGLang looks at the path's end only, and above one that is on the host alone other nodes may be leaves.
            self.tree_core._update_evictable_leaf_sets(node)

    def _protect(self, tokens: int) -> None:
        self.tree_core.component_evictable_size_[self.component_type] -= tokens
        self.tree_core.component_protected_size_[self.component_type] += tokens

    def free_local(self, slots: Tensor) -> None:
        """Free the local slots that belong to global slots.

        slots: int64 or int32 [n], global slots, each of which has a local one. SGLang's `free_swa` would look which have;
            the host then waits for all that the device has queued, and the device idles while the next batch is made.
        """
        slots = slots.long()
        allocator = self.cache.token_to_kv_pool_allocator
        mapping = allocator.full_to_swa_index_mapping
        local = mapping[slots]
        if local.device.type == "cpu":
            assert bool((local > 0).all()), "a slot whose local slot is to be freed has none"
        allocator.swa_attn_allocator.free(local)
        unmap(mapping, slots)

    def apply_component_action(self, action: Any) -> None:
        """Do what the tree has decided: free slots, or give a node its local ones.

        Slots are freed by `free_local`, since every token of a live node has one. A tombstone that becomes live while it is
        locked counts as protected from eviction at once.
        """
        if isinstance(action, FreeComponentDeviceSlot):
            for slots in action.indices:
                self.free_local(slots)
            return
        super().apply_component_action(action)
        if self.credits_unlocked_only and isinstance(action, RecoverSWAWithLockedFull | SWARebuild):
            node = self.tree_core.node_by_id(action.node_id)
            if node.component_data[self.component_type].lock_ref > 0:
                self._protect(len(node.key))
