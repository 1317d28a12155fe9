# SPDX-License-Identifier: Apache-2.0
"""What KV events say of a tree is what can be reused of it, after any traffic; no more of segmented requests and other tenants."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, StorageMedium
from sglang.srt.mem_cache.radix_cache import RadixKey

from redknot_sglang.plan.identity import WHOLE
from redknot_sglang.radix.events import Events, block_hashes, first_hash, numbers_of
from redknot_sglang.radix.paths import reusable_tokens
from tests.radix import test_host_property, test_tree_property
from tests.radix.host_simulation import HostSimulation
from tests.radix.simulation import Simulation
from tests.versions import needs_host_tier

GPU, CPU = StorageMedium.GPU, StorageMedium.CPU
# Hashes of the tokens 1, 2 and 70,000, and their numbers.
EXPECTED = [
    "67abdd721024f0ff4e0b3f4c2fc13bc5bad42d0b7851d456d88d203d15aaa450",
    "e95092c4b38d42d1363b9e9b06bc5d6377af1cd06651a9fedac8b36dc9e56114",
    "21daed38278e3896421520f3546ff323507c867271407f20541b45a1857b26d0",
]
NUMBERS = [7470307888890966271, -1634645291211865391, 2439522973612128406]


class Subscriber:
    """What a router knows that hears all events: blocks by medium and hash, each with its parent's hash and its token."""

    def __init__(self, simulation: Simulation) -> None:
        self._tree = simulation.tree
        self._tree.events = Events(self._tree)
        self.blocks: dict[tuple[Any, int], tuple[int | None, int]] = {}
        self.hear()

    def hear(self) -> list[Any]:
        events = self._tree.take_events()
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self.blocks.clear()
            elif isinstance(event, BlockRemoved):
                for block in event.block_hashes:
                    del self.blocks[event.medium, block]
            else:
                assert isinstance(event, BlockStored) and event.block_size == 1
                parent = event.parent_block_hash
                for block, token in zip(event.block_hashes, event.token_ids, strict=True):
                    assert (event.medium, block) not in self.blocks, "told twice"
                    assert parent is None or self._knows(parent), "its parent is not known"
                    self.blocks[event.medium, block] = parent, token
                    parent = block
        return events

    def _knows(self, block: int) -> bool:
        return any((medium, block) in self.blocks for medium in (GPU, CPU))

    def matched(self, tokens: Sequence[int], namespace: str | None = None) -> int:
        """Tokens of a prompt's beginning whose blocks are known."""
        found = 0
        for block in hashes(tokens, namespace):
            if not self._knows(block):
                break
            found += 1
        return found


def hashes(tokens: Sequence[int], namespace: str | None) -> list[int]:
    return numbers_of(block_hashes(tokens, first_hash(namespace)))


def paths(tree: Any) -> Iterator[tuple[Any, list[int]]]:
    """All nodes with the tokens from the root to their ends."""
    stack = [(child, list[int]()) for child in tree.tree_core.root_node.children.values()]
    while stack:
        node, before = stack.pop()
        tokens = [*before, *node.key.token_ids[: len(node.key)]]
        yield node, tokens
        stack += [(child, tokens) for child in node.children.values()]


def reusable(tree: Any, served: Sequence[str | None]) -> set[tuple[Any, int]]:
    """Blocks of all prompts' beginnings that can be reused, by medium."""
    found = set[tuple[Any, int]]()
    nodes = list(paths(tree))
    boundaries = [
        (tokens, node.key.extra_key)
        for node, tokens in nodes
        if reusable_tokens(tree, RadixKey(array("q", tokens), node.key.extra_key), False) == len(tokens)
    ]
    for node, tokens in nodes:
        namespace = node.key.extra_key
        leads = any(there == namespace and end[: len(tokens)] == tokens for end, there in boundaries)
        if namespace in served and leads:
            mine = hashes(tokens, namespace)[-len(node.key) :]
            if not node.evicted:
                found |= {(GPU, block) for block in mine}
            if node.backuped:
                found |= {(CPU, block) for block in mine}
    return found


def check(simulation: Simulation, subscriber: Subscriber, served: Sequence[str | None]) -> None:
    subscriber.hear()
    true = reusable(simulation.tree, served)
    assert true <= subscriber.blocks.keys(), "something that can be reused was not told"
    assert subscriber.blocks.keys() <= true, "something was told that cannot be reused"


@pytest.mark.parametrize("seed", range(12))
def test_all_that_can_be_reused_is_told_and_no_more(seed: int) -> None:
    pools = ((900, 900), (900, 160), (300, 300), (250, 120))[seed % 4]
    window, sink = (1, 7, 16)[seed % 3], (0, 1, 4)[seed // 2 % 3]
    simulation = Simulation(*pools, window=window, sink=sink, policy=("lru", "redknot")[seed % 2])
    subscriber, traffic = Subscriber(simulation), test_tree_property.Traffic(simulation, seed)
    for step in range(120):
        traffic.step()
        if step % 3 == 0:
            check(simulation, subscriber, (None,))
    for req in list(simulation.running):
        simulation.finish(req)
    simulation.evict(10**6, 10**6)
    check(simulation, subscriber, (None,))
    assert not subscriber.blocks


@needs_host_tier
@pytest.mark.parametrize("seed", range(8))
def test_with_a_host_tier_both_media_are_told(seed: int) -> None:
    device, host = test_host_property.SIZES[seed % 4]
    simulation = HostSimulation(device, host, window=(7, 16)[seed % 2], sink=4)
    subscriber, traffic = Subscriber(simulation), test_host_property.Traffic(simulation, seed)
    media = set()
    for step in range(150):
        traffic.step()
        if step % 3 == 0:
            check(simulation, subscriber, ("one", "two", "whole"))
            media |= {medium for medium, _ in subscriber.blocks}
    assert media == {GPU, CPU}


def compute(simulation: Simulation, prompt: Sequence[int], namespace: str | None = None) -> None:
    req = simulation.admit(prompt, namespace)
    simulation.prefill(req, 1000)
    simulation.finish(req)


def test_a_prompt_is_told_with_sglangs_hashes_and_taken_back_when_it_goes() -> None:
    simulation = Simulation(600, 600, window=16, sink=4)
    subscriber, prompt = Subscriber(simulation), list(range(100))
    compute(simulation, prompt)
    subscriber.hear()
    assert subscriber.matched(prompt) == 100
    assert subscriber.matched([1, *prompt[1:]]) == 0
    assert [token for _, token in subscriber.blocks.values()] == prompt
    simulation.evict(10**6, 10**6)
    assert {type(event) for event in subscriber.hear()} == {BlockRemoved} and not subscriber.blocks


def test_a_prompt_that_lost_its_tail_is_not_promised() -> None:
    """Its global KV is there, and its tokens are computed anew all the same."""
    simulation = Simulation(600, 600, window=16, sink=4)
    subscriber, prompt = Subscriber(simulation), list(range(100))
    compute(simulation, prompt)
    subscriber.hear()
    # The sink's local slots go last, and behind the sink alone a prompt can go on.
    simulation.evict(0, 16)
    subscriber.hear()
    assert simulation.tree.full_evictable_size() == 84
    assert subscriber.matched(prompt) == 4
    compute(simulation, prompt)
    subscriber.hear()
    assert subscriber.matched(prompt) == 100


def test_hashes_are_sglangs() -> None:
    """What `get_hash_str` of SGLang 0.5.17 gives, which needs a compiler."""
    found = block_hashes([1, 2, 70000], None)
    assert found == EXPECTED
    assert block_hashes([2, 70000], found[0]) == found[1:]
    assert numbers_of(found) == NUMBERS and numbers_of([]) == []


def test_blocks_of_tenants_are_not_alike() -> None:
    simulation = Simulation(900, 900, window=16, sink=4)
    subscriber, prompt = Subscriber(simulation), list(range(100))
    for tenant in (None, "one", "two"):
        assert subscriber.matched(prompt, tenant) == 0
        compute(simulation, prompt, tenant)
        subscriber.hear()
        assert subscriber.matched(prompt, tenant) == 100
    assert len(subscriber.blocks) == 300


def test_paths_of_segmented_requests_are_not_told() -> None:
    simulation = Simulation(900, 900, window=16, sink=4)
    subscriber = Subscriber(simulation)
    for namespace in ("one" + WHOLE, "one\0redknot none none"):
        compute(simulation, [*range(50), 1 << 40, *range(50)], namespace)
    assert subscriber.hear() == []


def test_a_flush_clears_everything() -> None:
    simulation = Simulation(600, 600, window=16, sink=4)
    subscriber = Subscriber(simulation)
    compute(simulation, list(range(100)))
    subscriber.hear()
    simulation.tree.reset()
    assert [type(event) for event in subscriber.hear()] == [AllBlocksCleared] and not subscriber.blocks


def test_nothing_is_kept_for_nobody() -> None:
    simulation = Simulation(600, 600, window=16, sink=4)
    compute(simulation, list(range(100)))
    assert simulation.tree.events is None and simulation.tree.take_events() == []
