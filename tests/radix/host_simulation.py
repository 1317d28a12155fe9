# SPDX-License-Identifier: Apache-2.0
"""The scheduler in miniature with a host tier: slots hold numbers that stand for the tokens they were computed from.

Copies to the host and back move these numbers for real. As in a server, loads begin at the next forward, and what was locked for a
copy stays locked until somebody asks what is done, so that other requests split nodes meanwhile.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import register_stack_strategy
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from redknot_sglang.kernels import run_copies
from redknot_sglang.kernels.run_copies import Sizes
from redknot_sglang.pool.host_copies import HostStack
from redknot_sglang.pool.sizing import PoolSlots
from redknot_sglang.radix.listeners import Move
from tests.radix.calls import SimulatedRequest
from tests.radix.simulation import Simulation

CLASSES = (ComponentType.FULL, ComponentType.SWA)


def code(prefix: Sequence[int]) -> float:
    """A number for a token and all before it, exact in float32."""
    return float(zlib.crc32(repr(tuple(prefix)).encode()) % (1 << 22))


class Figures:
    """Counts what the tree says of its tiers."""

    def __init__(self) -> None:
        self.tokens = {move: [0, 0] for move in Move}
        self.loads = 0

    def kv_moved(self, move: Move, global_tokens: int, local_tokens: int) -> None:
        assert global_tokens >= 0 and local_tokens >= 0, (move, global_tokens, local_tokens)
        self.tokens[move][0] += global_tokens
        self.tokens[move][1] += local_tokens

    def loads_done(self, seconds: float) -> None:
        assert seconds >= 0
        self.loads += 1


class HostSimulation(Simulation):
    """Pools and host pools of the given sizes. policy: SGLang's write policy. eviction: the eviction policy."""

    def __init__(
        self,
        pools: tuple[int, int],
        host: tuple[int, int],
        window: int,
        sink: int,
        policy: str = "write_through",
        eviction: str = "lru",
    ) -> None:
        super().__init__(*pools, window=window, sink=sink, policy=eviction)
        register_stack_strategy(HostStack(PoolSlots(*host)))
        arguments = SimpleNamespace(
            hicache_storage_backend=None,
            hicache_storage_backend_extra_config=None,
            hicache_storage_prefetch_policy="timeout",
            hicache_write_policy=policy,
            extra_metric_labels=None,
            served_model_name="m",
        )
        # A row has four bytes: runs of eight rows are long, and the staging buffer holds twenty of keys and of values.
        with patch.dict(run_copies.SIZES, cpu=Sizes(least=4 * 8, staging=4 * 2 * 20)):
            self.tree.init_hicache(arguments, self.params)
        self.figures = Figures()
        self.tree.tier_listeners = (self.figures,)
        self.host = [entry.host_pool for entry in self.tree.host_pool_group.entries]

    def _start(self, req: SimulatedRequest) -> None:
        key = RadixKey(req.ids, req.extra_key, limit=len(req.ids) - 1)
        slots = self.calls.start_from_host(req, self.tree.match_prefix(MatchPrefixParams(key=key, req=req)))
        req.prefix_indices = slots
        req.computed = req.cache_protected_len = req.cached_tokens = len(slots)
        req.decoded = 0
        req.redknot.start = len(slots)
        self.rows.write((req.req_pool_idx, slice(0, req.computed)), slots)

    def forward_begins(self) -> None:
        """Loads that wait for a forward are done."""
        self.pool.relocations.run(self.pool, None)
        self.pool.relocations.wait()

    def notice(self) -> None:
        """What copies that are done have locked is released."""
        self.tree.check_hicache_events()

    def evict_from_host(self, global_slots: int, local_slots: int) -> None:
        """Ask the tree for free host slots."""
        for component, slots in zip(CLASSES, (global_slots, local_slots), strict=True):
            self.tree.evict_host(slots, component)

    def _check_reads(self, req: SimulatedRequest, first_row: int, end: int) -> None:
        self.forward_begins()
        slots = self.rows.req_to_token[req.req_pool_idx, :end].long()
        local = self.pool.translate_loc_from_full_to_swa(slots)
        expected = torch.tensor([code(req.ids[: at + 1]) for at in range(end)])
        for rows, known in ((slots[first_row:], self._global()), (local[first_row:], self._local())):
            for buffer in known:
                buffer[rows] = expected[first_row:, None, None]
        for buffer in self._global():
            assert torch.equal(buffer[slots][:, 0, 0], expected), "global KV is not this request's"
        begin = max(0, first_row - self.window + 1)
        seen = [at for at in range(end) if at >= begin or at < self.sink]
        assert bool((local[seen] > 0).all()), f"a row of {first_row}..{end} sees a position without a local slot"
        for buffer in self._local():
            assert torch.equal(buffer[local[seen]][:, 0, 0], expected[seen]), "local KV is another's"

    def _global(self) -> tuple[Any, Any]:
        return self.pool.full_kv_pool.k[0], self.pool.full_kv_pool.v[0]

    def _local(self) -> tuple[Any, Any]:
        return self.pool.swa_kv_pool.k[0], self.pool.swa_kv_pool.v[0]

    # ---- checks ---------------------------------------------------------------------------------------------------

    def nodes(self) -> list[tuple[Any, tuple[int, ...], str | None]]:
        """All nodes of the tree but the root, with the tokens from the root to their ends, and their namespaces."""
        found, stack = [], [(self.tree.root_node, ())]
        while stack:
            parent, tokens = stack.pop()
            for node in parent.children.values():
                path = (*tokens, *node.key.token_ids[: len(node.key)])
                found.append((node, path, node.key.extra_key))
                stack.append((node, path))
        return found

    def check_conservation(self) -> None:
        """As without a host tier, and: free + tree = all host slots, of each class; what the host holds is what it is for."""
        super().check_conservation()
        held: list[list[int]] = [[], []]
        for node, path, _ in self.nodes():
            for kind, component in enumerate(CLASSES):
                rows = node.component_data[component].host_value
                if rows is None:
                    continue
                held[kind] += rows.tolist()
                start = len(path) - len(node.key)
                expected = torch.tensor([code(path[: at + 1]) for at in range(start, len(path))])
                for pair in self.host[kind]._layers[0]:
                    for buffer in pair.host:
                        assert torch.equal(buffer[rows][:, 0, 0], expected), (node.id, component)
        for rows, others, pool in zip(held, self.held_elsewhere(), self.host, strict=True):
            rows += others
            assert len(set(rows)) == len(rows), "a host slot has two owners"
            assert len(rows) + pool.available_size() == pool.size

    def held_elsewhere(self) -> tuple[list[int], list[int]]:
        """Global and local host slots that are taken, but not by the tree yet."""
        return [], []

    def check_no_locks(self) -> None:
        """Nothing is locked at either end once all copies are done and nothing runs."""
        self.forward_begins()
        self.notice()
        assert not self.running and not self.tree.ongoing_load_back and not self.tree.ongoing_write_through
        for node, _, _ in self.nodes():
            for component in CLASSES:
                data = node.component_data[component]
                assert data.lock_ref == data.host_lock_ref == 0, (node.id, component, data)
