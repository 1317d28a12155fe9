# SPDX-License-Identifier: Apache-2.0
"""What the prefix cache does beside caching."""

from __future__ import annotations

from typing import Any

import pytest
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from redknot_sglang.radix import cache
from tests.radix.simulation import Simulation


def test_the_tree_is_checked_a_twentieth_of_an_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check takes 4 ms here, and the scheduler asks for one every millisecond."""
    tree = Simulation(64, 32, window=8, sink=2).tree
    now, checks = 0.0, []

    def check(_: UnifiedRadixCache) -> None:
        nonlocal now
        checks.append(now)
        now += 0.004

    monkeypatch.setattr(UnifiedRadixCache, "sanity_check", check)
    monkeypatch.setattr(cache, "monotonic", lambda: now)
    while now < 1.0:
        tree.sanity_check()
        now += 0.001
    assert 10 <= len(checks) <= 13 and checks[0] == 0.0


def test_a_broken_tree_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Simulation(64, 32, window=8, sink=2).tree

    def fail(_: UnifiedRadixCache) -> None:
        raise AssertionError("broken")

    monkeypatch.setattr(UnifiedRadixCache, "sanity_check", fail)
    for _ in range(2):
        with pytest.raises(AssertionError, match="broken"):
            tree.sanity_check()


class Hears:
    """Notes what the tree says, and what it held then."""

    def __init__(self, name: str, heard: list[tuple[str, Any]], simulation: Simulation) -> None:
        self._name, self._heard, self._simulation = name, heard, simulation

    def request_ended(self, req: Any) -> None:
        self._simulation.check_locks(req)
        self._heard.append((self._name, req))

    def slots_changed(self) -> None:
        self._heard.append((self._name, self._simulation.tree.full_evictable_size()))


def test_listeners_hear_of_requests_that_ended_and_of_slots_in_their_order() -> None:
    simulation, heard = Simulation(64, 32, window=8, sink=2), list[tuple[str, Any]]()
    simulation.tree.listeners = tuple(Hears(name, heard, simulation) for name in ("first", "second"))
    req = simulation.admit(range(20))
    simulation.prefill(req, 12)
    simulation.prefill(req, 12)
    assert heard == [("first", 0), ("second", 0)] * 2, "all that the tree holds is locked"
    heard.clear()
    simulation.finish(req)
    assert heard == [("first", req), ("second", req), ("first", 20), ("second", 20)]


def test_ranks_decide_alike_whatever_heads_they_have() -> None:
    """A rank whose heads are all global keeps and locks sinks as the others do: they all free and match the same slots."""
    trees = [Simulation(64, 32, window=8, sink=2, rank=rank, ranks=2).tree for rank in range(2)]
    assert [tree.token_to_kv_pool_allocator.get_kvcache().head_map.all_global for tree in trees] == [True, False]
    for tree in trees:
        assert (tree.local_heads.sink, tree.local_reach) == (2, (8, 2))
        assert tree.sliding_window_size == trees[0].sliding_window_size < 64
