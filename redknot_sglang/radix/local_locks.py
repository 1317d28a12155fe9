# SPDX-License-Identifier: Apache-2.0
"""Locks on the local head class: the live run before a request's boundary, up to one window back, and the path's sinks.

SGLang's component locks one window and releases it as decoding moves on. Sinks are read until the request ends, so they
have a lock of their own; chunks in flight and relocated segments are locked farther back than a window.
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

# Node marks, kept in the component's metadata.
SINK = "sink"  # the node lies in the first S positions
TRANSIENT = "transient"  # a chunk boundary nobody but the computing request has used


def unmap(mapping: Tensor, slots: Tensor) -> None:
    """Let global slots, int64 [n], have no local ones. `mapping[slots] = 0` would copy the 0 to the device and wait for it."""
    mapping.index_fill_(0, slots, 0)


class LocalLocks(SWAComponent):
    """Locks of tails and sinks on UnifiedRadixCache's nodes, and what they protect from eviction."""

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        head_map = params.token_to_kv_pool_allocator.get_kvcache().head_map
        self.sink: int = 0 if head_map.all_global else head_map.sink
        self.window: int = self.sliding_window_size
        self.scope = Scope()

    def acquire_component_lock(self, node: Any, result: Any, lock_host: bool = False) -> Any:
        """Lock the live run that ends at `node`, up to one window back, and the sinks of the path.

        The uppermost node of the run carries a uuid: it marks where release stops, and node splits hand it upward.
        """
        assert not lock_host, "local heads have no host tier"
        covered, uppermost, current = 0, None, node
        span = self.window if self.scope.now.span is None else self.scope.now.span
        while covered < span and (self._in_tail(current) or self._dead_in_span(current)):
            self._lock(current)
            covered += len(current.key)
            uppermost, current = current, current.parent
        for sink in self._sinks_above(node):
            assert sink.component_data[self.component_type].value is not None, f"sink node {sink.id} is not live"
            self._lock(sink)
        result.swa_uuid_for_lock = None
        if uppermost is not None:
            marks = uppermost.component_data[self.component_type].metadata
            if marks.get("uuid") is None:
                marks["uuid"] = next_component_uuid()
            result.swa_uuid_for_lock = marks["uuid"]
        return result

    def release_component_lock(self, node: Any, params: Any, lock_host: bool = False) -> None:
        """Undo `acquire_component_lock`."""
        self._release_tail(node, params.swa_uuid_for_lock if params else None)
        self.release_sinks(node)

    def release_window_lock(self, node: Any, swa_uuid_for_lock: int | None, device_frees: Any, host_frees: Any) -> None:
        """Release the tail only: decoding has moved past it. The sinks are still read."""
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

    def _protect(self, tokens: int) -> None:
        self.tree_core.component_evictable_size_[self.component_type] -= tokens
        self.tree_core.component_protected_size_[self.component_type] += tokens

    def free_local(self, slots: Tensor) -> None:
        """Free the local slots of global slots that all have one: int64 or int32 [n].

        SGLang's `free_swa` looks which of them have one. Then the host must know how many, waits for everything the
        device has queued, and the device has nothing to do while the next batch is made.
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
        """A live node has local slots all through; a tombstone revived under a lock is protected from the start."""
        if isinstance(action, FreeComponentDeviceSlot):
            for slots in action.indices:
                self.free_local(slots)
            return
        super().apply_component_action(action)
        if isinstance(action, RecoverSWAWithLockedFull | SWARebuild):
            node = self.tree_core.node_by_id(action.node_id)
            if node.component_data[self.component_type].lock_ref > 0:
                self._protect(len(node.key))
