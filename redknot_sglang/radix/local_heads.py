# SPDX-License-Identifier: Apache-2.0
"""Which tokens of the tree have local slots: a component of SGLang's radix tree, in the place of its "SWA" component.

That one serves sliding-window layers and keeps one live stretch for each path, the window before its end. Local heads
need four things more:

- *sinks*: the first S positions lie in nodes of their own, stay live, and every request locks them with its path
  (`local_locks.py`);
- *several live stretches*: a path keeps a tail at each boundary from which a request has gone on;
- *whole paths*: of segments under `blend` all positions stay live, since any of their rows may be computed again and then
  looks back from there; such a path is reusable only as far as it is live from its beginning;
- *in-flight chunks*: a chunk that is still being computed is wholly live and wholly locked, since rows in its middle
  look back into it. What it no longer needs is dropped when the next chunk is cached.

A node is either wholly live in the local pool or not at all (a tombstone); inserts split nodes so that this holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from redknot_sglang.plan.request import state_of
from redknot_sglang.plan.spans import Spans, clip, gaps, kept_local, union
from redknot_sglang.radix.local_host import LocalHost
from redknot_sglang.radix.local_locks import SINK, TRANSIENT
from redknot_sglang.radix.scope import ALL
from redknot_sglang.seams.sglang import (
    BASE_COMPONENT_TYPE,
    EvictLayer,
    FreeDeviceKV,
    LRURefreshPhase,
    RecoverSWAWithLockedFull,
    SWARebuild,
)

_MARKS = (SINK, TRANSIENT)


class LocalHeads(LocalHost):
    """The local class's component of the tree: what is inserted live, what can be reused, what is dropped again."""

    # ---- what a request hands to the tree -------------------------------------------------------------------------

    def prepare_for_caching_req(self, req: Any, insert_params: Any, token_ids_len: int, is_finished: bool) -> None:
        """Decide which tokens of a request keep their local slots in the tree, and free the local slots of the others.

        req: SGLang's Req.
        insert_params: parameters of the insert that follows; gets `live_spans` and `transient`.
        token_ids_len: tokens to insert.
        is_finished: whether the request has ended.
        """
        state = state_of(req)
        owned_from = req.cache_protected_len
        freed_to = req.kv.swa_evicted_seqlen
        freed = union([(max(owned_from, self.sink), freed_to), *state.dead])
        if insert_params.chunked and not is_finished:
            # The chunk may still be in flight: nothing of it can go yet.
            live: Spans = gaps(freed, 0, token_ids_len)
        else:
            kept = kept_local(token_ids_len, self.window, self.sink, state.branch)
            kept = [(0, token_ids_len)] if state.whole else kept
            row = self.cache.req_to_token_pool.req_to_token[req.req_pool_idx]
            gone = [row[start:end] for start, end in gaps(union(kept + freed), owned_from, token_ids_len)]
            if gone:
                self.free_local(torch.cat(gone))
            live = [part for span in kept for part in gaps(freed, *span)]
        insert_params.live_spans = live
        insert_params.transient = insert_params.chunked and not is_finished and not state.whole

    def free_out_of_window_slots(self, req: Any, pre_len: int, insert_params: Any) -> None:
        """Does nothing: SGLang would free all before the window here, the sinks too; `prepare_for_caching_req` has freed
        what can go.
        """

    # ---- insert ---------------------------------------------------------------------------------------------------

    def commit_insert_component_data(
        self, node: Any, is_new_leaf: bool, params: Any, result: Any, cache_actions: list[Any]
    ) -> None:
        """Called for a new node: split it into live nodes and tombstones, and give the live ones their local slots.

        node: the node.
        is_new_leaf: whether it is new.
        params: the insert's, with `live_spans` and `transient` of `prepare_for_caching_req`.
        result: the insert's so far; `prefix_len` is the position of the node's first token.
        cache_actions: what SGLang does afterwards, in order; extended here.
        """
        if not is_new_leaf:
            return
        start, end = result.prefix_len, result.prefix_len + len(node.key)
        live = clip(params.live_spans, start, end)
        pieces = self.cut(node, start, end, self._edges(live, start, end), cache_actions)
        self._make_live(pieces, live, params.transient, cache_actions)

    def update_component_on_insert_overlap(
        self,
        node: Any,
        prefix_len: int,
        total_prefix_len: int,
        value_slice: Any,
        params: Any,
        cache_actions: list[Any],
    ) -> int:
        """Called for a node that was there: if it is a tombstone, make it live with the request's local slots.

        node: the node.
        prefix_len: tokens of the node.
        total_prefix_len: position of its first token.
        value_slice: int64 [prefix_len], the request's global slots of these tokens.
        params: the insert's; `prev_prefix_len` tokens of the request's are the tree's own already.
        cache_actions: what SGLang does afterwards, in order; extended here.
        Returns how many of these slots SGLang is to free as duplicates: all, or none if they were taken over.
        """
        start, end = total_prefix_len, total_prefix_len + prefix_len
        data, live = node.component_data[self.component_type], clip(params.live_spans, start, end)
        if params.prev_prefix_len >= end or data.value is not None:
            if data.metadata.get(TRANSIENT) and not params.transient:
                # Of what is left of earlier chunks only these spans stay.
                self.cut(node, start, end, self.within(live, start, end), cache_actions)
            return prefix_len
        if not live:
            return prefix_len
        for piece, (a, b) in self.cut(node, start, end, self._edges(live, start, end), cache_actions):
            incoming = value_slice[a - start : b - start]
            if clip(live, a, b):
                # The node keeps its global slots, which others may be reading, and takes over the local ones.
                kept = piece.component_data[BASE_COMPONENT_TYPE].value
                cache_actions.append(RecoverSWAWithLockedFull(piece.id, kept, incoming))
                self._mark(piece, b, params.transient)
            else:
                cache_actions.append(FreeDeviceKV([incoming]))
        return 0

    def recover_after_unevict(
        self, node: Any, prefix_len: int, total_prefix_len: int, params: Any, cache_actions: list[Any]
    ) -> None:
        """Called for a node whose global slots were evicted and came back with the request: as for a new node."""
        self._tell(node)
        start, end = total_prefix_len, total_prefix_len + prefix_len
        live = clip(params.live_spans, start, end)
        pieces = self.cut(node, start, end, self._edges(live, start, end), cache_actions)
        self._make_live(pieces, live, params.transient, cache_actions)

    def _edges(self, live: Spans, start: int, end: int) -> list[int]:
        # With an edge one window before the end a lock on that pins one window, not the whole node.
        return self.within([*live, (self.sink, end - self.window)], start, end)

    @staticmethod
    def within(spans: Spans, start: int, end: int) -> list[int]:
        """The edges of spans that lie between `start` and `end`, ascending."""
        return sorted({edge for span in spans for edge in span if start < edge < end})

    def cut(
        self, node: Any, start: int, end: int, edges: list[int], cache_actions: list[Any]
    ) -> list[tuple[Any, tuple[int, int]]]:
        """Split `node`, which covers [start, end), at `edges`; returns (piece, its span) from first to last.

        cache_actions: what the tree has to do afterwards, extended here.
        """
        pieces = []
        for edge in edges:
            head, action = self.tree_core._split_node(node.key, node, edge - start)
            if action is not None:
                cache_actions.append(action)
            pieces.append((head, (start, edge)))
            start = edge
        return [*pieces, (node, (start, end))]

    def _make_live(
        self, pieces: list[tuple[Any, tuple[int, int]]], live: Spans, transient: bool, cache_actions: list[Any]
    ) -> None:
        # From last to first: actions are applied in order, and the sinks should be the last to be evicted.
        for piece, (a, b) in reversed(pieces):
            if clip(live, a, b):
                cache_actions.append(SWARebuild(piece.id, piece.component_data[BASE_COMPONENT_TYPE].value))
                self._mark(piece, b, transient)

    def _mark(self, node: Any, end: int, transient: bool) -> None:
        self._tell(node)
        marks = node.component_data[self.component_type].metadata
        if end <= self.sink:
            marks[SINK] = True
        elif transient:
            marks[TRANSIENT] = True

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        """Called when a node is split: both halves keep its marks."""
        super().redistribute_on_node_split(new_parent, child)
        marks = child.component_data[self.component_type].metadata
        new_parent.component_data[self.component_type].metadata.update(
            {mark: marks[mark] for mark in _MARKS if mark in marks}
        )

    # ---- match ----------------------------------------------------------------------------------------------------

    def create_match_validator(self, match_device_only: bool = False) -> Callable[[Any], bool]:
        """A function that is called for each node from the root down and says whether a prefix can be reused up to its end.

        It can if all sinks are live and so are the W - 1 positions before: the next row is itself the W-th of its window.

        match_device_only: whether local KV on the host does not count.
        """
        component_type, needed = self.component_type, ALL if self.scope.now.whole else self.window - 1
        run: float = float("inf")
        sinks_live = True

        def validator(node: Any) -> bool:
            nonlocal run, sinks_live
            data = node.component_data[component_type]
            if data.value is None and (match_device_only or data.host_value is None):
                run = 0
                sinks_live = sinks_live and not data.metadata.get(SINK)
            else:
                run += len(node.key)
            return sinks_live and run >= needed

        return validator

    def refresh_lru(self, phase: LRURefreshPhase, node: Any, root_node: Any) -> None:
        """Mark a path as just used: its tail, and then its sinks, so that sinks are evicted after all that needs them."""
        super().refresh_lru(phase, node, root_node)
        if phase is LRURefreshPhase.WALKDOWN:
            return
        for sink in self._sinks_above(node):
            if sink.component_data[self.component_type].value is not None:
                self.tree_core.lru_lists[self.component_type].reset_node_mru(sink)

    def first_to_go(self, count: int, on_host: bool) -> list[Any]:
        """The nodes whose local KV is evicted next, in order, as far as that is known now; nothing changes.

        count: how many at most.
        on_host: whether from the host; else from the device.
        """
        if on_host:
            order = self.tree_core.host_lru_lists[self.component_type]
            node, following = order.get_lru_no_host_lock(), order.get_prev_no_host_lock
        else:
            order = self.tree_core.lru_lists[self.component_type]
            node, following = order.get_lru_no_lock(), order.get_prev_no_lock
        found: list[Any] = []
        while node is not None and len(found) < count:
            found.append(node)
            node = following(node)
        return found

    # ---- dropping what a request no longer needs --------------------------------------------------------------------

    def drop_transient(
        self, node: Any, branch: int, end: int = 0, is_complete: bool = False
    ) -> tuple[dict[Any, list[Any]], dict[Any, list[Any]]]:
        """Make tombstones of `transient` nodes that nobody has locked, once their chunk is no longer in flight.

        node: where the request's path ends.
        branch: a position before which one window is kept, see `spans.kept_local`; 0 for none.
        end: tokens of the path if the request has finished: the window before that is kept for good. 0 if it goes on.
        is_complete: whether the prompt is: then the window before `branch` is kept for good as well.
        Returns the slots that the cache is to free, on the device and on the host.
        """
        device_frees: dict[Any, list[Any]] = defaultdict(list)
        host_frees: dict[Any, list[Any]] = defaultdict(list)
        path = []
        while node is not self.tree_core.root_node:
            path.append(node)
            node = node.parent
        stop = 0
        for current in reversed(path):
            start, stop = stop, stop + len(current.key)
            data = current.component_data[self.component_type]
            if max(start, end - self.window) < min(stop, end):
                data.metadata.pop(TRANSIENT, None)
            wanted = max(start, branch - self.window) < min(stop, branch)
            if wanted and is_complete:
                data.metadata.pop(TRANSIENT, None)
            if not data.metadata.get(TRANSIENT) or data.lock_ref > 0 or wanted:
                continue
            del data.metadata[TRANSIENT]
            if data.value is not None:
                self.tree_core._evict_component_and_detach_lru(
                    current, self, target=EvictLayer.DEVICE, device_frees=device_frees, host_frees=host_frees
                )
        return device_frees, host_frees
