# SPDX-License-Identifier: Apache-2.0
"""Lifetimes: above the watermark what nobody has used for long turns cold, a little at a time, and is found again."""

from __future__ import annotations

from typing import Any

import pytest

from redknot_sglang.radix import cooling, trials
from redknot_sglang.radix.listeners import Move
from redknot_sglang.radix.retention import Retention
from redknot_sglang.radix.uses import FRACTION
from redknot_sglang.seams.sglang import ComponentType
from tests.radix.host_simulation import HostSimulation
from tests.radix.test_host_tier import moved, visit
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

WINDOW, SINK = 8, 2
SIZE = 600


def simulate(host: int = 4000, local: int = SIZE) -> HostSimulation:
    return HostSimulation((SIZE, local), (host, host), WINDOW, SINK, eviction="redknot")


def used(simulation: HostSimulation) -> int:
    """Global slots on the device that are in use."""
    return simulation.allocator.size_full - simulation.allocator.full_available_size()


def steps(simulation: HostSimulation, count: int = 40) -> None:
    """So many steps of an idle scheduler."""
    for _ in range(count):
        simulation.notice()
        simulation.check_conservation()


def fill(simulation: HostSimulation, prompts: int = 9, first: int = 0) -> list[list[int]]:
    made = [[1000 * (first + number) + i for i in range(65)] for number in range(prompts)]
    for prompt in made:
        visit(simulation, prompt)
    return made


def test_a_lifetime_is_half_lives_and_one_more_for_twice_the_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "HALF_LIVES", ((1, 1),))

    def lives(uses: int) -> int:
        """Half-lives after which a piece that was used so often, at once, is over."""
        retention = Retention(1000, lambda position: 1)
        counter = retention.started()
        retention.use([(counter, True)] * uses)
        assert not retention.is_over(counter)
        ticks = 0
        while not retention.is_over(counter):
            ticks += 1
            retention.clock.advance(100)
        return -(-ticks // 10)

    assert [lives(uses) for uses in (1, 2, 4, 8, 1024)] == [2, 3, 4, 5, 12]
    retention = Retention(1000, lambda position: 1)
    assert retention.is_over(retention.started()) and not retention.is_over(retention.started(1 << FRACTION))


def test_above_the_watermark_nodes_turn_cold_and_are_found_again() -> None:
    simulation = simulate()
    prompts = fill(simulation)
    assert used(simulation) == 585 and moved(simulation, Move.COOLED) == [0, 0]
    steps(simulation)
    # To the watermark and by no more than one node below it, without anybody having asked for room.
    assert SIZE * 9 // 10 - 65 < used(simulation) <= SIZE * 9 // 10
    assert moved(simulation, Move.COOLED)[0] == 585 - used(simulation)
    assert moved(simulation, Move.DEMOTED) == moved(simulation, Move.DROPPED) == [0, 0]
    # The first, which nobody has used for longest.
    cold = {path[0] for node, path, _ in simulation.nodes() if node.evicted}
    assert cold == {0}
    assert [visit(simulation, prompt) for prompt in prompts] == [64] * 9
    steps(simulation)
    simulation.check_no_locks()


def test_a_step_does_little_and_an_idle_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulate()
    # Four pieces each: a sink, a middle, a window, and the token that a second prompt parts at.
    fill(simulation)
    tree = simulation.tree
    assert tree.cooling is not None
    tree.cooling.watermark = 1, 10
    simulation.notice()
    at_once = sum(node.evicted for node, _, _ in simulation.nodes())
    assert 0 < at_once <= 2 * cooling._NODES, "each class does little"
    steps(simulation)
    assert used(simulation) <= SIZE // 10 + 65
    looks: list[int] = []
    victims = tree.components[ComponentType.FULL].on_device.victims

    def take(original: Any = victims.take) -> Any:
        looks.append(1)
        return original()

    monkeypatch.setattr(victims, "take", take)
    tree.cooling.watermark = 0, 10
    steps(simulation, 60)
    assert used(simulation) < 130, "the last prompt's lifetime is not over"
    before = len(looks)
    steps(simulation, 60)
    assert len(looks) == before, "nothing is looked at while no time passes"


def test_what_runs_or_has_no_copy_or_was_just_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooling, "WATERMARK", (0, 1))
    simulation = simulate(host=200)
    fill(simulation, 5)
    steps(simulation)
    keeper = simulation.tree.keeper
    assert keeper is not None
    leaves = simulation.tree.tree_core.evictable_device_leaves
    assert any(not leaf.backuped for leaf in leaves), "the host has no room for all"
    for leaf in leaves:
        counters = keeper.global_uses(leaf), keeper.local_uses(leaf)
        assert not leaf.backuped or not all(map(keeper.retention.is_over, counters))
    assert moved(simulation, Move.DROPPED) == [0, 0]

    simulation = simulate()
    (prompt,) = fill(simulation, 1)
    req = simulation.admit(prompt)
    # Time passes, and others do not keep it.
    fill(simulation, 3, first=50)
    steps(simulation)
    running = [node for node, path, _ in simulation.nodes() if path[0] == prompt[0] and len(path) <= 64]
    assert running and not any(node.evicted for node in running)
    simulation.prefill(req, 100)
    simulation.finish(req)


def test_the_local_class_has_a_watermark_of_its_own() -> None:
    simulation = simulate(local=200)
    prompts = [[1000 * number + i for i in range(25)] for number in range(19)]
    for prompt in prompts:
        visit(simulation, prompt, chunk=4)
        simulation.notice()
    steps(simulation)
    local = simulation.allocator.size_swa - simulation.allocator.swa_available_size()
    assert local <= 180 and used(simulation) < SIZE * 9 // 10
    assert moved(simulation, Move.COOLED)[1] > 0
    assert [visit(simulation, prompt, chunk=4) for prompt in prompts] == [24] * 19
    simulation.check_no_locks()


def test_nothing_turns_cold_under_other_policies() -> None:
    simulation = HostSimulation((SIZE, SIZE), (4000, 4000), WINDOW, SINK)
    fill(simulation)
    steps(simulation)
    assert simulation.tree.cooling is None and moved(simulation, Move.COOLED) == [0, 0] and used(simulation) == 585
