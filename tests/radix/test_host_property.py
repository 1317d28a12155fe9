# SPDX-License-Identifier: Apache-2.0
"""Random traffic over the tree with a host tier: reads always find the right KV, no slot is lost at either end, no lock is left.

Inserts, matches, splits, locks on segments, evictions, copies to the host and loads from there, under both write policies.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from math import inf
from typing import Any, cast

import pytest

from redknot_sglang.kernels import run_copies
from redknot_sglang.plan.identity import MARK
from redknot_sglang.radix.listeners import Move
from tests.radix.calls import SimulatedRequest
from tests.radix.host_simulation import HostSimulation
from tests.radix.simulation import OutOfSlots
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

STEPS = 150
# So many that nodes turn cold under `write_through_selective` too, with which SGLang 0.5.23 copies a fourth of what 0.5.17 did.
SEEDS, ALL_SEEDS = 16, 300
# Slots on the device, and on the host: less than there, about as many, and room for everything.
SIZES = (((250, 120), (150, 60)), ((250, 120), (600, 200)), ((160, 90), (4000, 2000)), ((900, 900), (300, 300)))


class Plan:
    """The part of a segmented request's plan that the tree reads."""

    identity = f"{MARK} planned"

    @staticmethod
    def key(tokens: Any) -> Any:
        """Without marks where segments begin, so that a path's tokens are those that its KV is of."""
        return tokens


class Traffic:
    """Conversations over a few shared beginnings of two tenants, some with whole paths, some of segmented requests, and segments that
    are locked for a while; driven by one seed.
    """

    def __init__(self, simulation: HostSimulation, seed: int) -> None:
        self.simulation = simulation
        self.rng = random.Random(seed)
        lengths = (2, 5, 30, 60, 90)
        self.texts = [[self.rng.randrange(50) for _ in range(self.rng.choice(lengths))] for _ in range(4)]
        # Paths of segments: namespace, tokens, and what `lock_path` returned.
        self.segments: list[tuple[str, array[int], tuple[Any, Any, Any]]] = []
        self.locks = 0

    def step(self) -> None:
        """One scheduler decision, whatever is possible."""
        simulation, rng = self.simulation, self.rng
        running = simulation.running
        action = rng.random()
        if rng.random() < 0.4:
            simulation.notice()
        if not running or (action < 0.25 and len(running) < 4):
            text = rng.choice(self.texts)
            prompt = text[: rng.randrange(1, len(text) + 1) if rng.random() < 0.3 else len(text)] + self._new_tokens()
            # Whole paths have a namespace of their own.
            tenant = rng.choice(("one", "two", "whole"))
            req = simulation.admit(prompt, tenant, whole=tenant == "whole")
            if tenant != "whole" and rng.random() < 0.3:
                req.redknot.plan = cast(Any, Plan())
                simulation.retract(req)
        elif action < 0.33:
            simulation.evict(rng.randrange(80), rng.randrange(60))
        elif action < 0.37:
            simulation.evict_from_host(rng.randrange(60), rng.randrange(30))
        elif action < 0.41:
            self._start_again(rng.choice(running))
        elif action < 0.46:
            simulation.finish(rng.choice(running), insert=rng.random() < 0.5)
        elif action < 0.49:
            simulation.forward_begins()
        elif action < 0.54:
            self._lock()
        elif action < 0.58 and self.segments:
            self.unlock(rng.randrange(len(self.segments)))
        else:
            self._advance(rng.choice(running))

    def _advance(self, req: SimulatedRequest) -> None:
        simulation, rng = self.simulation, self.rng
        try:
            if req.computed < len(req.ids):
                simulation.prefill(req, rng.choice((1, 3, 8, 20, 64)), finish=rng.random() < 0.1)
            elif rng.random() < 0.25:
                self.texts.append(list(req.ids))
                simulation.finish(req)
            elif not req.redknot.whole:
                for _ in range(rng.choice((1, 5, 15))):
                    simulation.decode(req, rng.randrange(50), maintain=rng.random() < 0.3)
                simulation.release_tail(req)
        except OutOfSlots:
            self._start_again(req)
            if rng.random() < 0.5:
                simulation.finish(req, insert=False)

    def _lock(self) -> None:
        """Lock a path of the tree as one of a segment, if it is on the device or, half of the time, on the host."""
        tree, rng = self.simulation.tree, self.rng
        paths = [(path, space) for _, path, space in self.simulation.nodes() if space in ("one", "two", "whole")]
        if not paths:
            return
        path, tenant = rng.choice(paths)
        tokens = array("q", path)
        room = (lambda: (inf, inf)) if rng.random() < 0.5 else None
        found = tree.lock_path(tokens, tenant, tenant == "whole", room) if len(self.segments) < 3 else None
        if found is not None:
            self.segments.append((tenant, tokens, found))
            self.locks += 1

    def unlock(self, number: int) -> None:
        """Release a segment that was locked; a request may have relocated it."""
        tree = self.simulation.tree
        tenant, tokens, (_, node, lock) = self.segments.pop(number)
        if self.rng.random() < 0.7:
            tree.segment_used(tenant, tokens, node, tenant == "whole")
        tree.dec_lock_ref(node, lock.to_dec_params())

    def _start_again(self, req: SimulatedRequest) -> None:
        self.simulation.retract(req)

    def _new_tokens(self) -> list[int]:
        return [self.rng.randrange(50) for _ in range(self.rng.choice((1, 1, 4, 25)))]


def play(seed: int, eviction: str, policy: str, steps: int = STEPS) -> tuple[HostSimulation, Traffic]:
    """A run to its end, in which everything is checked after every step. eviction, policy: for eviction, and for writing to the host."""
    rng = random.Random(seed)
    pools, host = rng.choice(SIZES)
    window, sink = rng.choice((1, 2, 7, 16)), rng.choice((0, 1, 4))
    simulation = HostSimulation(pools, host, window, sink, policy, eviction)
    traffic = Traffic(simulation, seed)
    for _ in range(steps):
        traffic.step()
        simulation.check_conservation()
    for req in list(simulation.running):
        simulation.finish(req)
    while traffic.segments:
        traffic.unlock(0)
    simulation.check_no_locks()
    simulation.check_conservation()
    simulation.evict(10**6, 10**6)
    simulation.check_conservation()
    assert simulation.allocator.full_available_size() == simulation.allocator.size_full
    assert simulation.allocator.swa_available_size() == simulation.allocator.size_swa
    simulation.evict_from_host(10**6, 10**6)
    assert [pool.available_size() for pool in simulation.host] == [pool.size for pool in simulation.host]
    assert not simulation.nodes()
    return simulation, traffic


def count_rows(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Rows that are copied from now on in each direction: all, and those that go by the kernel."""
    rows: Counter[tuple[str, str]] = Counter()
    by_kernel = run_copies.copy_rows
    for direction in ("load", "save"):
        copy = getattr(run_copies, f"{direction}_rows")

        def copied(pair: Any, staging: Any, host: Any, *rest: Any, copy: Any = copy, way: str = direction) -> None:
            def short(*given: Any) -> None:
                rows[way, "kernel"] += len(given[2])
                by_kernel(*given)

            rows[way, "all"] += len(host)
            monkeypatch.setattr(run_copies, "copy_rows", short)
            copy(pair, staging, host, *rest)

        monkeypatch.setattr(run_copies, f"{direction}_rows", copied)
    return rows


@pytest.mark.parametrize("policy", ["write_through", "write_through_selective"])
@pytest.mark.parametrize("eviction", ["lru", "redknot"])
def test_random_traffic(eviction: str, policy: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = count_rows(monkeypatch)
    loaded, cooled, locks = [0, 0], [0, 0], 0
    for seed in range(ALL_SEEDS if full else SEEDS):
        try:
            simulation, traffic = play(seed, eviction, policy)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        locks += traffic.locks
        for kind, tokens in enumerate(simulation.figures.tokens[Move.LOADED_BACK]):
            loaded[kind] += tokens
        for kind, tokens in enumerate(simulation.figures.tokens[Move.COOLED]):
            cooled[kind] += tokens
    assert min(loaded) > 0 and locks > 0
    assert 0 < rows["load", "kernel"] < rows["load", "all"] and 0 < rows["save", "kernel"] < rows["save", "all"], rows
    assert (min(cooled) > 0) == (eviction == "redknot"), cooled
    print(
        f"{loaded[0]} global and {loaded[1]} local tokens loaded; {locks} locks on segments; {cooled[0]} and {cooled[1]} turned cold"
    )
