# SPDX-License-Identifier: Apache-2.0
"""The eviction policy `redknot` with a host tier: its order is that in which KV leaves the host, too."""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest

from redknot_sglang.radix.listeners import Move
from redknot_sglang.seams.sglang import ComponentType, RadixKey
from tests.radix.host_simulation import HostSimulation
from tests.radix.test_host_property import Traffic
from tests.radix.test_host_tier import push_out, visit
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

WINDOW, SINK = 8, 2


def simulate(pools: tuple[int, int], host: tuple[int, int], eviction: str = "redknot") -> HostSimulation:
    return HostSimulation(pools, host, WINDOW, SINK, eviction=eviction)


@pytest.mark.parametrize("seed", range(3))
def test_what_leaves_the_host_has_the_lowest_rank(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulate((250, 120), (300, 90))
    tree, taken = simulation.tree, []
    core, keeper = tree.tree_core, tree.keeper
    assert keeper is not None
    for kind, rank in ((ComponentType.FULL, keeper.global_rank), (ComponentType.SWA, keeper.local_rank)):
        victims = tree.components[kind].on_host.victims

        def take(original: Any = victims.take, kind: Any = kind, rank: Any = rank) -> Any:
            able = (
                set(core.evictable_host_leaves)
                if kind is ComponentType.FULL
                else {node for node in core.host_lru_lists[kind].cache.values() if not node.component_data[kind].host_lock_ref}
            )  # fmt: skip
            chosen = original()
            if chosen is None:
                assert not able, kind
                return None
            assert chosen in able and rank(chosen) == min(map(rank, able))
            taken.append(kind)
            return chosen

        monkeypatch.setattr(victims, "take", take)
    traffic = Traffic(simulation, seed)
    for _ in range(150):
        traffic.step()
        simulation.check_conservation()
    assert set(taken) == {ComponentType.FULL, ComponentType.SWA}


def test_popular_documents_stay_on_the_host_while_others_pass() -> None:
    """Neither the device nor, under LRU, the host holds all that passes between two uses of a document."""
    found = {}
    for eviction in ("lru", "redknot"):
        simulation, rng = simulate((260, 260), (700, 400), eviction), random.Random(3)
        documents = [[rng.randrange(1 << 20) for _ in range(50)] for _ in range(6)]
        hits = 0
        for number in range(160):
            popular = number % 3 == 0
            prompt = rng.choice(documents) if popular else [rng.randrange(1 << 20) for _ in range(80)]
            cached = visit(simulation, [*prompt, 7])
            simulation.notice()
            hits += cached if popular else 0
        found[eviction] = hits
        assert simulation.figures.tokens[Move.HOST_DROPPED][0] > 0
    assert found["redknot"] > 1.3 * found["lru"], found


def test_what_a_store_brings_gets_counters_when_it_is_looked_at() -> None:
    """SGLang puts such nodes on the host without asking anybody."""
    simulation = simulate((200, 200), (200, 200))
    tree, keeper = simulation.tree, simulation.tree.keeper
    assert keeper is not None
    visit(simulation, list(range(30)))
    push_out(simulation)
    slots = simulation.host[0].alloc(50)
    key = RadixKey(array("q", range(100, 150)), None)
    inserted = tree.tree_core.insert_host(tree.root_node.id, key, slots, [])
    assert not inserted.host_insert_dropped
    (node,) = [node for node, path, _ in simulation.nodes() if len(path) == 50]
    # Somebody parts from it before anybody has looked.
    simulation.finish(simulation.admit([*range(100, 120), 7]), insert=False)
    assert keeper.start_of(node) == 20 and keeper.global_uses(node).count == 0
    assert keeper.global_rank(node) > keeper.global_rank(node.parent)
    assert tree.ages.age(node, ComponentType.FULL) == 0
    # What is used goes later.
    assert tree.evict_host(50) >= 50
    assert {len(path) for _, path, _ in simulation.nodes()} == {SINK, 30 - WINDOW, 30}
