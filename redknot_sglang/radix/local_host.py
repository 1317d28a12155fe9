# SPDX-License-Identifier: Apache-2.0
"""Local slots and the host tier: which local KV is copied to the host, what comes back, and the locks meanwhile.

A node may have its local KV on the device, on the host, on both or nowhere. Of a path the host gets what the device keeps for good:
sinks, tails, and all of a whole path. What comes back for a request is what its next row sees: the window before the
boundary where it goes on, and the sinks; of a whole path everything.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from redknot_sglang.radix.listeners import Move
from redknot_sglang.radix.local_locks import SINK, TRANSIENT, LocalLocks
from redknot_sglang.radix.scope import ALL
from redknot_sglang.seams.sglang import CacheTransferPhase, EvictLayer, PoolName, PoolTransfer, next_component_uuid

_HOST_UUID = "host_uuid"


class LocalHost(LocalLocks):
    """The part of the local class's tree component that knows the host tier.

    freed: local tokens freed on the device, since the process began; parts of chunks that nobody needed any more are among them.
    """

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self.freed: Counter[Move] = Counter()

    def is_kept(self, node: Any) -> bool:
        """Whether a node has local KV on the device that stays there until room is needed."""
        data = node.component_data[self.component_type]
        return data.value is not None and not data.metadata.get(TRANSIENT)

    def lacks_copy(self, node: Any) -> bool:
        """Whether a node has local KV that stays and of which the host has no copy."""
        return self.is_kept(node) and node.component_data[self.component_type].host_value is None

    def needed_above(self, node: Any) -> list[Any]:
        """The nodes whose local KV a row behind `node` sees, the first position first."""
        span = ALL if self.scope.now.whole else self.window - 1
        covered, found = 0, []
        while node is not self.tree_core.root_node:
            if covered < span or node.component_data[self.component_type].metadata.get(SINK):
                found.append(node)
            covered += len(node.key)
            node = node.parent
        return found[::-1]

    def finalize_match_result_in_tree_core(
        self, result: Any, params: Any, value_chunks: list[Any], best_value_len: int
    ) -> Any:
        """Add to a match how many local slots a request takes hold of when it is loaded back.

        result: SGLang's MatchResult, with nodes. Its `swa_host_hit_length` becomes the local slots that come from the host and,
            if there are any, those on the device behind what can be reused without them: these could have been evicted
            until then, and admission counts on it.
        params, value_chunks, best_value_len: SGLang's, without use here.
        """
        best, on_device = result.best_match_node, result.last_device_node
        if best is on_device:
            return result
        needed = self.needed_above(best)
        beyond, node = set(), best
        while node is not on_device and node is not self.tree_core.root_node:
            beyond.add(node.id)
            node = node.parent
        slots = sum(len(node.key) for node in needed if self._is_cold(node) or node.id in beyond)
        return result._replace(swa_host_hit_length=slots)

    def cold_above(self, node: Any) -> list[Any]:
        """Those of `needed_above` that have to come from the host."""
        return [above for above in self.needed_above(node) if self._is_cold(above)]

    def _is_cold(self, node: Any) -> bool:
        data = node.component_data[self.component_type]
        return data.value is None and data.host_value is not None

    # ---- copies ---------------------------------------------------------------------------------------------------

    def build_hicache_transfers(self, node: Any, phase: Any, **kwargs: Any) -> list[Any] | None:
        """What is to be copied of a node, or for a boundary at its end.

        node: of a copy to the host, the node that is copied; of a load, the node where a match ends.
        phase: SGLang's CacheTransferPhase, one of these two.
        kwargs: SGLang's, for other components.
        Returns one transfer, or None if there is nothing to copy. Part of a chunk that goes when the next one is cached is not copied.
        """
        data = node.component_data[self.component_type]
        if phase is CacheTransferPhase.BACKUP_HOST:
            if not self.is_kept(node):
                return None
            return [PoolTransfer(name=PoolName.SWA, device_indices=data.value.to(torch.int64))]
        assert phase is CacheTransferPhase.LOAD_BACK, f"local heads do not take part in {phase}"
        cold = self.cold_above(node)
        if not cold:
            return None
        rows = torch.cat([above.component_data[self.component_type].host_value for above in cold])
        return [PoolTransfer(name=PoolName.SWA, host_indices=rows, nodes_to_load=[above.id for above in cold])]

    def commit_hicache_transfer(self, node: Any, phase: Any, transfers: Any = (), **kwargs: Any) -> None:
        """Note that a copy is on its way: the nodes have their local KV at both ends from now on.

        Parameters are those of `build_hicache_transfers`, and what that returned. A node that is locked counts as protected from
        eviction at once.
        """
        super().commit_hicache_transfer(node, phase, transfers, **kwargs)
        if phase is not CacheTransferPhase.LOAD_BACK:
            return
        for node_id in transfers[0].nodes_to_load:
            loaded = self.tree_core.node_by_id(node_id)
            self._tell(loaded)
            if self.credits_unlocked_only and loaded.component_data[self.component_type].lock_ref > 0:
                self._protect(len(loaded.key))

    def evict_component(
        self, node: Any, device_frees: Any, host_frees: Any, target: Any = EvictLayer.DEVICE
    ) -> tuple[int, int]:
        """Take a node's local KV from the device or the host, or from both. Parameters and result are SGLang's."""
        has_copy = node.component_data[self.component_type].host_value is not None
        freed: tuple[int, int] = super().evict_component(node, device_frees, host_frees, target=target)
        self.freed[Move.DEMOTED if has_copy and target is EvictLayer.DEVICE else Move.DROPPED] += freed[0]
        self.cache.ages.left(node, self.component_type, *freed)
        self._tell(node)
        return freed

    def give_host_rows(self, node: Any, end: int, rows: Any) -> None:
        """Note that local KV of a node, which the host has a global copy of, has come to the host.

        end: position where the node ends.
        rows: int64 [tokens of the node], its host slots.
        """
        self._attach_swa_host_value(node, rows)
        if end <= self.sink:
            node.component_data[self.component_type].metadata[SINK] = True
        self._tell(node)

    def _tell(self, node: Any) -> None:
        """Local KV of a node came or went, or all of it."""
        if self.cache.events is not None:
            self.cache.events.local_changed(node)

    # ---- locks ----------------------------------------------------------------------------------------------------

    def acquire_component_lock(self, node: Any, result: Any, lock_host: bool = False) -> Any:
        """Lock local slots on the device (`LocalLocks`), or local host slots while they are loaded.

        A lock on the host covers the nodes that one on the device would, and is released in the same way: its uppermost node
        carries a uuid, which a split hands up.
        """
        if not lock_host:
            return super().acquire_component_lock(node, result)
        span = self.window if self.scope.now.span is None else self.scope.now.span
        covered, uppermost, current = 0, None, node
        while covered < span and self._is_between(current):
            current.component_data[self.component_type].host_lock_ref += 1
            covered += len(current.key)
            uppermost, current = current, current.parent
        for sink in self._sinks_above(node):
            sink.component_data[self.component_type].host_lock_ref += 1
        result.swa_uuid_for_host_lock = None
        if uppermost is not None:
            marks = uppermost.component_data[self.component_type].metadata
            if marks.get(_HOST_UUID) is None:
                marks[_HOST_UUID] = next_component_uuid()
            result.swa_uuid_for_host_lock = marks[_HOST_UUID]
        return result

    def release_component_lock(self, node: Any, params: Any, lock_host: bool = False) -> None:
        """Release what `acquire_component_lock` locked at `node`; `params` carries the uuids."""
        if not lock_host:
            super().release_component_lock(node, params)
            return
        uuid, current = params.swa_uuid_for_host_lock, node
        while uuid is not None:
            assert current is not self.tree_core.root_node, f"no node carries host lock {uuid}"
            self._unlock_host(current)
            if current.component_data[self.component_type].metadata.get(_HOST_UUID) == uuid:
                break
            current = current.parent
        for sink in self._sinks_above(node):
            self._unlock_host(sink)

    def _unlock_host(self, node: Any) -> None:
        data = node.component_data[self.component_type]
        assert data.host_lock_ref > 0, f"node {node.id} is not locked on the host"
        data.host_lock_ref -= 1

    def _is_between(self, node: Any) -> bool:
        """Whether a node lies between the sinks and the end of a path."""
        marks = node.component_data[self.component_type].metadata
        return node is not self.tree_core.root_node and not marks.get(SINK)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Called when a node is split: both halves are locked on the host as it was, and the upper one carries the uuid."""
        super().redistribute_on_node_split(new_parent, child)
        above, below = (node.component_data[self.component_type] for node in (new_parent, child))
        above.host_lock_ref = below.host_lock_ref
        uuid = below.metadata.pop(_HOST_UUID, None)
        if uuid is not None:
            above.metadata[_HOST_UUID] = uuid
