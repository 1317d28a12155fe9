# SPDX-License-Identifier: Apache-2.0
"""What the inspector says is stored: what this server wrote or read itself, per node and head class."""

from __future__ import annotations

import random

import numpy as np
import pytest

from redknot_sglang.radix.inventory import Inventory
from redknot_sglang.radix.stored_marks import is_stored
from redknot_sglang.seams.sglang import ComponentType
from redknot_sglang.store import objects
from tests.radix.store_simulation import CONTEXT, StoredSimulation
from tests.radix.test_stored import SINK, WINDOW, filled, simulate, visit
from tests.store.memory import MemoryStore
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

PROMPT = list(range(200))


def held(simulation: StoredSimulation, tier: str = "stored") -> tuple[int, int]:
    """Tokens of each class that are said to be in a tier."""
    pieces = Inventory(simulation.tree, False).read()["pieces"]
    counts = [sum(piece["classes"][name][tier] for piece in pieces) for name in ("global", "local")]
    return counts[0], counts[1]


def test_what_was_written_is_stored_hot_or_cold() -> None:
    simulation = simulate(MemoryStore())
    visit(simulation, PROMPT)
    assert held(simulation) == (0, 0), "it is on its way"
    simulation.work()
    assert held(simulation) == held(simulation, "both") == (200, SINK + WINDOW)
    simulation.evict(10**6, 10**6)
    assert held(simulation) == held(simulation, "host") == (200, SINK + WINDOW)
    simulation.flush()
    assert held(simulation) == (0, 0)


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_read_is_stored(whole: bool) -> None:
    other = simulate(filled(PROMPT, whole=whole))
    assert other.bring(PROMPT, whole=whole) == 200
    assert held(other) == held(other, "host") == (200, 200 if whole else SINK + WINDOW)


def test_what_another_server_stored_of_a_path_is_not_known() -> None:
    """This one has computed the beginning and was told of the rest only."""
    stored = filled(PROMPT)
    other = simulate(stored)
    stored.fails = "it is down"
    visit(other, PROMPT[:130])
    other.work()
    stored.fails = None
    assert held(other) == (0, 0), "it could not be written"
    assert other.bring(PROMPT) == 70
    assert held(other) == (70, SINK + WINDOW)


def test_halves_of_what_is_stored_are_stored_and_what_branches_off_is_not() -> None:
    simulation = simulate(MemoryStore())
    visit(simulation, PROMPT)
    simulation.work()
    req = simulation.admit([*PROMPT[:90], *range(1000, 1040)])
    simulation.prefill(req, 1000)
    simulation.finish(req)
    assert held(simulation)[0] == 200 and held(simulation, "both")[0] == 240
    simulation.work()
    assert held(simulation)[0] == 240


def test_an_emptied_store_and_a_failed_read_are_noticed() -> None:
    simulation = simulate(MemoryStore())
    visit(simulation, PROMPT)
    simulation.work()
    simulation.tree.clear_storage_backend()
    assert held(simulation) == (0, 0)
    simulation.write()
    visit(simulation, [*PROMPT, 7, 8])
    simulation.work()
    assert held(simulation)[0] == 202
    longer = [*PROMPT, 7, 8, *range(500, 600)]
    stored = simulation.objects
    other = simulate(stored)
    visit(other, longer)
    other.work()
    for name in [name for name in stored.objects if name.endswith("-e")]:
        stored.objects[name] = stored.objects[name][:-1]
    assert simulation.bring(longer) == 0
    assert held(simulation) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_said_to_be_stored_is_in_the_store(seed: int) -> None:
    """Random traffic in small pools. A path's blocks are looked up by name; its local rows where it ends for somebody."""
    rng, stored = random.Random(seed), MemoryStore()
    simulation = StoredSimulation(stored, (400, 250), (500, 250), WINDOW, SINK, eviction="redknot")
    texts = [[rng.randrange(50) for _ in range(150)] for _ in range(3)]
    said = 0
    for _ in range(25):
        whole, text = rng.random() < 0.3, rng.choice(texts)
        prompt = text[: rng.randrange(20, 150)] + [rng.randrange(50)] * rng.randrange(1, 30)
        if rng.random() < 0.5:
            simulation.bring(prompt, "t", whole)
        visit(simulation, prompt, "t", whole)
        simulation.work()
        for node, path, space in simulation.nodes():
            if is_stored(node, ComponentType.FULL, simulation.store.clears):
                ends = list(objects.block_ends(len(path)))
                names = objects.digests(CONTEXT, space or "", np.asarray(path, dtype=np.int64), ends)
                pieces = [objects.block(name, end, whole) for name, end in zip(names, ends, strict=True)]
                assert all(piece.name in stored.objects for piece in pieces)
                said += len(node.key)
    assert said > 1000
