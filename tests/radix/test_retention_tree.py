# SPDX-License-Identifier: Apache-2.0
"""The eviction policy `redknot` in the tree: victims go by rank, locked nodes stay, and the count of the bench is the tree's."""

from __future__ import annotations

import random
from typing import Any

import pytest

from eval.retention.block_tree import POLICIES, token_hits
from eval.retention.real_tree import RealTree
from eval.retention.traces import make
from redknot_sglang.radix import trials
from redknot_sglang.radix.keeper import Keeper
from redknot_sglang.radix.uses import FRACTION
from redknot_sglang.seams.sglang import ComponentType
from tests.radix.simulation import Simulation
from tests.radix.test_tree_property import Traffic
from tests.versions import before_adapted


def _nodes(simulation: Any) -> list[Any]:
    found, stack = [], list(simulation.tree.tree_core.root_node.children.values())
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(node.children.values())
    return found


def _keeper(simulation: Any) -> Keeper:
    keeper: Keeper = simulation.tree.keeper
    return keeper


@pytest.mark.parametrize("seed", range(4))
def test_victims_are_those_of_the_lowest_rank_and_never_locked(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(900, 160 if seed % 2 else 900, window=7, sink=2, policy="redknot")
    tree, taken = simulation.tree, []
    core = tree.tree_core
    for kind, lowest in ((ComponentType.FULL, "global_rank"), (ComponentType.SWA, "local_rank")):
        component = tree.components[kind]

        def take(
            component: Any = component,
            kind: Any = kind,
            lowest: str = lowest,
            original: Any = component.on_device.victims.take,
        ) -> Any:
            chosen = original()
            rank = getattr(_keeper(simulation), lowest)
            able = core.evictable_device_leaves if kind is ComponentType.FULL else {
                node for node in _nodes(simulation)
                if node.component_data[kind].value is not None and not node.component_data[kind].lock_ref
            }  # fmt: skip
            if chosen is None:
                assert not able
                return None
            assert chosen in able and chosen.component_data[kind].lock_ref == 0
            if kind is ComponentType.FULL:
                assert rank(chosen) == min(map(rank, able))
            taken.append(kind)
            return chosen

        monkeypatch.setattr(component.on_device.victims, "take", take)
    traffic = Traffic(simulation, seed)
    for _ in range(150):
        traffic.step()
        simulation.check_conservation()
    assert set(taken) >= {ComponentType.FULL}


def test_every_node_has_counters_and_its_place() -> None:
    simulation = Simulation(2000, 2000, window=7, sink=2, policy="redknot")
    traffic = Traffic(simulation, 5)
    keeper = _keeper(simulation)
    for _ in range(150):
        traffic.step()
        for node in _nodes(simulation):
            start = (
                0
                if node.parent is simulation.tree.tree_core.root_node
                else keeper.start_of(node.parent) + len(node.parent.key)
            )
            assert keeper.start_of(node) == start
            assert keeper.global_uses(node).count >= 0 and keeper.local_uses(node).count >= 0


def test_a_request_counts_once_and_its_answer_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # So long a half-life that counts are numbers of uses.
    monkeypatch.setattr(trials, "HALF_LIVES", ((1000, 1),))
    simulation = Simulation(600, 600, window=4, sink=2, policy="redknot")
    for uses in (1, 2):
        req = simulation.admit(range(40))
        while req.computed < 40:
            simulation.prefill(req, 16)
        for token in range(3):
            simulation.decode(req, 1000 + token, maintain=False)
        simulation.finish(req)
        keeper = _keeper(simulation)
        clock, start_of = keeper.retention.clock, keeper.start_of
        for node in _nodes(simulation):
            assert clock.decayed(keeper.global_uses(node)) >> FRACTION == uses, start_of(node)
            # The second request went on from 39 tokens, since it has to compute the last one. Its rows see three before.
            needed = start_of(node) < 2 or start_of(node) + len(node.key) > 36
            assert (clock.decayed(keeper.local_uses(node)) >> FRACTION > 0) == needed, start_of(node)


@before_adapted
def test_popular_documents_survive_a_scan_and_come_back_known() -> None:
    found = {}
    for policy in ("lru", "redknot"):
        tree, rng = RealTree(policy, (4000, 4000), 120), random.Random(1)
        popular = [[rng.randrange(1 << 30) for _ in range(100)] for _ in range(20)]
        hits = 0
        for number in range(800):
            prompt = rng.choice(popular) if number % 2 else [rng.randrange(1 << 30) for _ in range(100)]
            hits += tree.access([*prompt, rng.randrange(1 << 30), rng.randrange(1 << 30)])
        found[policy] = hits / (800 * 102)
    assert found["redknot"] > found["lru"] + 0.1, found


def test_a_flush_forgets() -> None:
    simulation = Simulation(300, 300, window=4, sink=2, policy="redknot")
    for _ in range(2):
        for seed in range(8):
            rng = random.Random(seed)
            req = simulation.admit([rng.randrange(50) for _ in range(60)])
            while req.computed < 60:
                simulation.prefill(req, 64)
            simulation.finish(req)
        simulation.evict(10**6, 10**6)
        simulation.tree.reset()
        simulation.allocator.clear()
        assert _keeper(simulation).retention.clock.uses == 0


@before_adapted
@pytest.mark.parametrize("kind", ["drifting", "conversations"])
def test_the_tree_finds_what_the_bench_counts(kind: str) -> None:
    """Blocks of 4 tokens. A tree reuses a branch from the second visit on, so it finds a little less under any policy."""
    tokens_of_a_block, cost = 4, lambda position: 1
    requests = [[(name, tokens_of_a_block) for name in request.hash_ids] for request in make(kind, 0, 1200)]
    distinct = len({name for path in requests for name, _ in path}) * tokens_of_a_block
    capacity, longest = distinct // 12, max(map(len, requests)) * tokens_of_a_block
    total = sum(tokens for path in requests for _, tokens in path)
    rates = {}
    for policy in ("lru", "redknot"):
        hits, _ = token_hits(requests, capacity, POLICIES[policy](capacity, cost))
        tree = RealTree(policy, (capacity, 4 * capacity), longest + 1, window=1)
        prompts = [[name * 4 + i for name, _ in path for i in range(4)] for path in requests]
        # The last token of a prompt is always computed, so one more is asked behind it.
        found = sum(tree.access([*prompt, 1 << 30]) for prompt in prompts)
        rates[policy] = 100 * hits / total, 100 * found / total
    assert all(abs(counted - found) < 6 for counted, found in rates.values()), rates
    assert rates["redknot"][1] > rates["lru"][1] - 0.5, rates


@before_adapted
@pytest.mark.parametrize("kind", ["drifting", "conversations"])
def test_a_short_local_class_keeps_the_tails_that_are_wanted(kind: str) -> None:
    """The global class has room for all. Sinks of forgotten paths must not fill the local one, nor new branches go at once."""
    prompts = [
        [name * 8 + i for name in request.hash_ids for i in range(8)] + [1 << 30] for request in make(kind, 0, 400)
    ]
    longest, tokens = max(map(len, prompts)), sum(map(len, prompts))
    found = {}
    for policy in ("lru", "redknot"):
        tree = RealTree(policy, (tokens, 2 * longest), longest + 1, window=8, sink=2)
        found[policy] = 100 * sum(map(tree.access, prompts)) / tokens
    assert found["redknot"] > found["lru"] - 0.5, found


class _Plan:
    """The part of a plan that the tree reads."""

    identity = "planned"

    @staticmethod
    def key(tokens: Any) -> Any:
        return tokens


def _planned() -> Any:
    return _Plan()


def _visit(simulation: Simulation, prompt: list[int], plan: Any = None) -> Any:
    """Answer a request of one token; returns the last node of its path."""
    req = simulation.admit(prompt, "")
    req.redknot.plan = plan
    if plan is not None:
        simulation.retract(req)
    simulation.prefill(req, 1000)
    simulation.finish(req)
    return next(node for node in _nodes(simulation) if node.key.token_ids[len(node.key) - 1] == prompt[-1])


def test_the_path_of_a_segmented_request_goes_first_until_a_second_one_goes_on_from_it() -> None:
    """It is made of documents that stay; under LRU it would push them out, being the last that was used."""
    simulation = Simulation(2000, 2000, window=7, sink=2, policy="redknot")
    keeper = _keeper(simulation)
    kept = _visit(simulation, list(range(60)))
    own = _visit(simulation, list(range(100, 200)), _Plan())
    for uses, rank in ((keeper.global_uses, keeper.global_rank), (keeper.local_uses, keeper.local_rank)):
        assert uses(own).count == 0 and rank(own) < rank(kept)
    again = _visit(simulation, [*range(100, 200), 7, 8, 9], _Plan())
    assert keeper.global_uses(own).count > 0 and keeper.global_rank(own) > keeper.global_rank(kept)
    assert keeper.local_uses(own).count > 0
    assert again is not own and again.parent is own


def test_only_what_a_segmented_request_found_counts_as_used() -> None:
    """Prompts that begin alike share a node, and what each has behind it is its own."""
    simulation = Simulation(2000, 2000, window=7, sink=2, policy="redknot")
    keeper = _keeper(simulation)
    for number in range(3):
        _visit(simulation, [*range(50), *range(200 + 40 * number, 240 + 40 * number)], _Plan())
    # The second left a tail where they part, so the third went on from there.
    counts = [(keeper.start_of(node) < 50, keeper.global_uses(node).count > 0) for node in _nodes(simulation)]
    assert all(shared == counted for shared, counted in counts) and len(set(counts)) == 2


@pytest.mark.parametrize("seed", range(3))
def test_two_ranks_choose_the_same_victims(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has all global heads and the other all local ones. Plans, slots and wall clocks do not matter."""
    gone: list[list[tuple[Any, ...]]] = [[], []]
    for rank in range(2):
        simulation = Simulation(900, 300, window=7, sink=2, policy="redknot", rank=rank, ranks=2)
        for kind in (ComponentType.FULL, ComponentType.SWA):
            victims = simulation.tree.components[kind].on_device.victims

            def take(
                original: Any = victims.take, kind: Any = kind, seen: Any = gone[rank], simulation: Any = simulation
            ) -> Any:
                node = original()
                if node is not None:
                    keeper = simulation.tree.keeper
                    seen.append((kind, keeper.start_of(node), *node.key.token_ids[: len(node.key)]))
                return node

            monkeypatch.setattr(victims, "take", take)
        traffic = SegmentedTraffic(simulation, seed)
        for _ in range(200):
            traffic.step()
    assert gone[0] == gone[1] and len(gone[0]) > 20


class SegmentedTraffic(Traffic):
    """Half of the requests are segmented ones, which leave paths of their own."""

    def step(self) -> None:
        known = set(map(id, self.simulation.running))
        super().step()
        for req in self.simulation.running:
            if id(req) not in known and req.computed == 0 and self.rng.random() < 0.5:
                req.redknot.plan = _planned()
                self.simulation.retract(req)


@pytest.mark.parametrize("seed", range(6))
def test_segmented_traffic_loses_nothing(seed: int) -> None:
    simulation = Simulation(700, 200, window=7, sink=2, policy="redknot")
    traffic = SegmentedTraffic(simulation, seed)
    for _ in range(150):
        traffic.step()
        simulation.check_conservation()
