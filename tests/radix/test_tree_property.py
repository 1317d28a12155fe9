# SPDX-License-Identifier: Apache-2.0
"""Random traffic over the tree: reads always find the right KV, and no slot is ever lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.radix.calls import SimulatedRequest
from tests.radix.simulation import OutOfSlots, Simulation

STEPS = 120


class Traffic:
    """Conversations over a few shared beginnings, driven by one seed."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation = simulation
        self.rng = random.Random(seed)
        self.texts = [[self.rng.randrange(50) for _ in range(self.rng.choice((2, 5, 30, 90)))] for _ in range(3)]

    def step(self) -> None:
        """One scheduler decision, whatever is possible."""
        simulation, rng = self.simulation, self.rng
        running = simulation.running
        action = rng.random()
        if not running or (action < 0.25 and len(running) < 6):
            text = rng.choice(self.texts)
            simulation.admit(text[: rng.randrange(1, len(text) + 1)] + self._new_tokens())
        elif action < 0.30:
            simulation.evict(rng.randrange(40), rng.randrange(40))
        elif action < 0.36:
            simulation.retract(rng.choice(running))
        elif action < 0.40:
            simulation.finish(rng.choice(running), insert=rng.random() < 0.5)
        else:
            self._advance(rng.choice(running))

    def _advance(self, req: SimulatedRequest) -> None:
        simulation, rng = self.simulation, self.rng
        try:
            if req.computed < len(req.ids):
                simulation.prefill(req, rng.choice((1, 3, 8, 20, 64)), finish=rng.random() < 0.1)
            elif rng.random() < 0.15:
                self.texts.append(list(req.ids))
                simulation.finish(req)
            else:
                for _ in range(rng.choice((1, 5, 25))):
                    simulation.decode(req, rng.randrange(50), maintain=rng.random() < 0.3)
                simulation.release_tail(req)
        except OutOfSlots:
            simulation.retract(req)
            if rng.random() < 0.5:
                simulation.finish(req, insert=False)

    def _new_tokens(self) -> list[int]:
        return [self.rng.randrange(50) for _ in range(self.rng.choice((1, 4, 25, 70)))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from((1, 2, 7, 16)),
    sink=st.sampled_from((0, 1, 4)),
    pools=st.sampled_from(((900, 900), (900, 160), (300, 300), (250, 120))),
    policy=st.sampled_from(("lru", "redknot")),
)
def test_random_traffic(seed: int, window: int, sink: int, pools: tuple[int, int], policy: str) -> None:
    simulation = Simulation(*pools, window=window, sink=sink, policy=policy)
    traffic = Traffic(simulation, seed)
    for _ in range(STEPS):
        traffic.step()
        simulation.check_conservation()
    for req in list(simulation.running):
        simulation.finish(req)
    simulation.check_conservation()
    simulation.evict(10**6, 10**6)
    assert simulation.allocator.full_available_size() == simulation.allocator.size_full
    assert simulation.allocator.swa_available_size() == simulation.allocator.size_swa


@pytest.mark.parametrize("sink", [0, 4])
def test_finished_prefix_keeps_sinks_and_one_tail(sink: int) -> None:
    simulation = Simulation(600, 600, window=16, sink=sink)
    req = simulation.admit(list(range(300)))
    while req.computed < 300:
        simulation.prefill(req, 64)
    simulation.finish(req)
    assert simulation.tree.full_evictable_size() == 300
    assert simulation.tree.swa_evictable_size() == 16 + sink


@pytest.mark.parametrize("chunk", [1000, 30])
def test_a_branch_is_reusable_from_its_second_visit(chunk: int) -> None:
    """Also if the second visitor is computed in chunks, after each of which its path is matched again."""
    simulation = Simulation(2000, 2000, window=16, sink=4)
    shared = list(range(100, 200))
    hits = []
    for number in range(3):
        req = simulation.admit(shared + [number] * 50)
        hits.append(req.cached_tokens)
        while req.computed < len(req.ids):
            simulation.prefill(req, chunk)
        simulation.finish(req)
    assert hits == [0, 4, 100]


def test_the_same_prompt_again_misses_only_its_last_token() -> None:
    simulation = Simulation(2000, 2000, window=16, sink=4)
    prompt = list(range(100))
    for expected in (0, 99):
        req = simulation.admit(prompt)
        assert req.cached_tokens == expected
        simulation.prefill(req, 1000)
        simulation.finish(req)


@pytest.mark.parametrize("chunk", [16, 40, 64, 99])
def test_a_request_that_ends_with_its_prompt_leaves_its_tail(chunk: int) -> None:
    """Its tail reaches back into chunks that were kept only until the next one."""
    simulation = Simulation(2000, 2000, window=16, sink=4)
    prompt = list(range(100))
    for expected in (0, 99):
        req = simulation.admit(prompt)
        assert req.cached_tokens == expected
        while req.computed < len(prompt):
            simulation.prefill(req, chunk, finish=True)
        simulation.check_conservation()
    # Wherever chunks end.
    assert simulation.tree.swa_evictable_size() == 20
