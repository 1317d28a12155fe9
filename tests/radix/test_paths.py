# SPDX-License-Identifier: Apache-2.0
"""What a path could give a request, and freeing what only it holds."""

from __future__ import annotations

from array import array

import pytest
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from redknot_sglang.radix.paths import nodes_along, reusable_tokens
from tests.radix.simulation import Simulation

WINDOW, SINK = 16, 4


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(2000, 2000, window=WINDOW, sink=SINK)


def compute(simulation: Simulation, prompt: list[int], whole: bool = False) -> None:
    simulation.prefill(simulation.admit(prompt, whole=whole), 1000, finish=True)


def key(prompt: list[int]) -> RadixKey:
    return RadixKey(array("q", prompt), None)


def reusable(simulation: Simulation, prompt: list[int], whole: bool = False) -> int:
    """What `reusable_tokens` says, which must be what a match says, and must change nothing."""
    before = tree_of(simulation)
    said = reusable_tokens(simulation.tree, key(prompt), whole)
    assert tree_of(simulation) == before
    with simulation.tree.local_heads.scope.within(whole=whole):
        simulation.tree._whole = whole
        match = simulation.tree.match_prefix(MatchPrefixParams(key=key(prompt)))
        simulation.tree._whole = False
    assert said == len(match.device_indices)
    return said


def tree_of(simulation: Simulation) -> list[tuple[int, int, float]]:
    nodes, found = [simulation.tree.tree_core.root_node], []
    while nodes:
        node = nodes.pop()
        found.append((node.id, len(node.key), node.last_access_time))
        nodes += node.children.values()
    return found


def test_an_ordinary_path_is_reusable_where_a_tail_ends(simulation: Simulation) -> None:
    prompt = list(range(300))
    assert reusable(simulation, prompt) == 0
    compute(simulation, prompt)
    assert reusable(simulation, prompt) == reusable(simulation, [*prompt, 999]) == 300
    assert reusable(simulation, prompt[:299]) == 299, "all but one of a window is enough"
    assert reusable(simulation, prompt[:200]) == SINK
    assert reusable(simulation, prompt, whole=True) == SINK


def test_a_whole_path_is_reusable_everywhere(simulation: Simulation) -> None:
    prompt = list(range(300))
    compute(simulation, prompt, whole=True)
    for length in (1, 3, 4, 20, 150, 299, 300):
        assert reusable(simulation, prompt[:length], whole=True) == length
    simulation.evict(0, 150)
    assert reusable(simulation, prompt, whole=True) < 300


def test_freeing_goes_up_to_what_others_need(simulation: Simulation) -> None:
    one, two = list(range(300)), list(range(200)) + list(range(500, 600))
    compute(simulation, one)
    compute(simulation, two)
    assert simulation.tree.free_path(key(one), set()) == 100
    assert simulation.tree.free_path(key(one), set()) == 0, "two goes on from there"
    simulation.check_conservation()
    held = {node.id for node, _ in nodes_along(simulation.tree, key(two[:250]))}
    assert simulation.tree.free_path(key(two), held) == WINDOW, "the node behind the one that 250 lies in"
    assert simulation.tree.free_path(key(two), set()) == 300 - WINDOW
    simulation.check_conservation()
    assert simulation.allocator.full_available_size() == simulation.allocator.size_full
    assert simulation.allocator.swa_available_size() == simulation.allocator.size_swa


def test_a_path_that_another_goes_on_from_stays(simulation: Simulation) -> None:
    compute(simulation, list(range(300)))
    assert simulation.tree.free_path(key(list(range(200))), set()) == 0
    assert simulation.tree.free_path(key([7, 8, 9]), set()) == 0


def test_what_a_request_has_locked_stays(simulation: Simulation) -> None:
    prompt = list(range(300))
    compute(simulation, prompt)
    req = simulation.admit([*prompt, 999])
    assert req.cached_tokens == 300
    assert simulation.tree.free_path(key(prompt), set()) == 0
    simulation.prefill(req, 1000)
    simulation.finish(req)
    assert simulation.tree.free_path(key([*prompt, 999]), set()) == 301
    simulation.check_conservation()
