# SPDX-License-Identifier: Apache-2.0
"""Random traffic over two servers that share a store: reads always find the right KV, no slot is lost, no lock is left.

Jobs on their way to the store and back advance in any order, come too late, and meet flushes.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from redknot_sglang.store import objects, reader, rows
from tests.radix.calls import SimulatedRequest
from tests.radix.store_simulation import StoredSimulation
from tests.radix.test_host_property import SIZES, Traffic
from tests.store.memory import MemoryStore
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

STEPS = 150
SEEDS, ALL_SEEDS = 8, 300


class StoredTraffic(Traffic):
    """Requests ask the store before they are admitted, and wait for it or not."""

    simulation: StoredSimulation

    def step(self) -> None:
        """One scheduler decision, or a step of a thread."""
        simulation, rng = self.simulation, self.rng
        action = rng.random()
        if action < 0.15:
            simulation.write()
        elif action < 0.35:
            simulation.read()
        elif action < 0.36:
            for job in simulation.store.fetching:
                job.deadline = 0.0
        elif action < 0.365 and not simulation.running and not self.segments:
            simulation.flush()
        elif action < 0.5:
            tenant = rng.choice(("one", "two", "whole"))
            text = rng.choice(self.texts)
            if text:
                simulation.fetch([*text, *self._new_tokens()], tenant, tenant == "whole")
            for _ in range(rng.choice((0, 0, 2))):
                simulation.read()
                simulation.notice()
        else:
            super().step()

    def _start_again(self, req: SimulatedRequest) -> None:
        self.simulation.retract(req)


def play(seed: int, steps: int = STEPS) -> int:
    """A run to its end, in which everything is checked after every step; returns how many tokens came from the store."""
    rng = random.Random(seed)
    store, host = MemoryStore(), rng.choice(SIZES)
    window, sink = rng.choice((1, 2, 7, 16)), rng.choice((0, 1, 4))
    policies: dict[str, Any] = {
        "policy": ("write_through", "write_through_selective")[seed % 2],
        "eviction": ("lru", "redknot")[seed // 2 % 2],
    }
    servers = [StoredSimulation(store, *host, window=window, sink=sink, **policies) for _ in range(2)]
    # Both see the same texts, in another order.
    traffic = [StoredTraffic(server, seed) for server in servers]
    traffic[1].rng = random.Random(-seed)
    for _ in range(steps):
        for server, driver in zip(servers, traffic, strict=True):
            # A store that rests is asked again.
            server.store.reading.worked()
            driver.step()
            server.check_conservation()
            if rng.random() < 0.005 and store.objects:
                bad = store.objects[rng.choice(sorted(store.objects))]
                bad[rng.randrange(len(bad))] ^= 1
    for server, driver in zip(servers, traffic, strict=True):
        for req in list(server.running):
            server.finish(req)
        while driver.segments:
            driver.unlock(0)
        server.work()
    servers.append(_restarted(store, host, window, sink, traffic))
    for server in servers:
        server.check_no_locks()
        server.check_conservation()
        server.evict(10**6, 10**6)
        server.evict_from_host(10**6, 10**6)
        assert [pool.available_size() for pool in server.host] == [pool.size for pool in server.host]
        assert not server.nodes()
    return sum(server.store.figures.tokens for server in servers)


def _restarted(
    store: MemoryStore,
    host: tuple[tuple[int, int], tuple[int, int]],
    window: int,
    sink: int,
    traffic: list[StoredTraffic],
) -> StoredSimulation:
    """A server that starts when the others are done, and has seen all their texts."""
    server = StoredSimulation(store, *host, window=window, sink=sink)
    for text in [text for driver in traffic for text in driver.texts][:40]:
        for tenant in ("one", "two", "whole"):
            prompt, is_whole = [*text, 1], tenant == "whole"
            server.store.reading.worked()
            server.bring(prompt, tenant, is_whole)
            server.check_conservation()
            if len(prompt) < 60:
                req = server.admit(prompt, tenant, is_whole)
                server.prefill(req, len(prompt), finish=True)
                server.check_conservation()
    server.work()
    return server


def test_random_traffic(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Paths of the simulation are short.
    for module in (objects, reader, rows):
        monkeypatch.setattr(module, "BLOCK", 8)
    loaded = 0
    for seed in range(ALL_SEEDS if full else SEEDS):
        try:
            loaded += play(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert loaded > 0
    print(f"{loaded} tokens came from the store")
