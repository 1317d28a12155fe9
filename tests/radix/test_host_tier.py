# SPDX-License-Identifier: Apache-2.0
"""The tree's host tier, one case at a time; random runs are in test_host_property.py."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from typing import Any

import pytest

from redknot_sglang.kernels import run_copies
from redknot_sglang.radix.listeners import Move
from redknot_sglang.seams.sglang import ComponentType, MatchPrefixParams, RadixKey
from tests.radix.host_simulation import HostSimulation
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

WINDOW, SINK = 8, 2
LOCAL = ComponentType.SWA


def simulate(pools: tuple[int, int] = (1000, 1000), host: tuple[int, int] = (1000, 1000)) -> HostSimulation:
    return HostSimulation(pools, host, window=WINDOW, sink=SINK)


def visit(simulation: HostSimulation, prompt: list[int], chunk: int = 1000, tenant: str | None = None) -> int:
    """A request for one token; returns how much of its prompt was cached."""
    req = simulation.admit(prompt, tenant)
    while req.computed < len(prompt):
        simulation.prefill(req, chunk)
    simulation.finish(req)
    simulation.check_conservation()
    return req.cached_tokens


def push_out(simulation: HostSimulation) -> None:
    """Everything leaves the device."""
    simulation.notice()
    simulation.evict(10**6, 10**6)
    simulation.check_conservation()
    assert simulation.tree.full_evictable_size() == 0


def moved(simulation: HostSimulation, move: Move) -> list[int]:
    """Global and local tokens so far."""
    return simulation.figures.tokens[move]


def test_each_class_moves_what_it_keeps() -> None:
    simulation = simulate()
    visit(simulation, list(range(100)))
    assert moved(simulation, Move.BACKED_UP) == [100, SINK + WINDOW]
    push_out(simulation)
    assert moved(simulation, Move.DEMOTED) == [100, SINK + WINDOW] and moved(simulation, Move.DROPPED) == [0, 0]
    assert visit(simulation, list(range(100))) == 99
    assert moved(simulation, Move.LOADED_BACK) == [99, SINK + WINDOW - 1]
    assert moved(simulation, Move.BACKED_UP) == [100, SINK + WINDOW], "nothing is copied twice"
    simulation.check_no_locks()


def test_long_runs_are_known_where_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang hands on the tensors that runs are remembered by, in both directions; short ones go by the kernel."""
    ways: dict[str, Counter[str]] = {"load": Counter(), "save": Counter()}
    for direction, said in ways.items():
        real = getattr(run_copies, f"{direction}_rows")

        def noted(
            buffers: Any, staging: Any, host_rows: Any, device_rows: Any, runs: Any, real: Any = real, said: Any = said
        ) -> None:
            batches = runs.batches(staging.rows_at_least(buffers), 20)
            said["engine"] += batches[-1].end if batches else 0
            said["rows"] += len(host_rows)
            real(buffers, staging, host_rows, device_rows, runs)

        monkeypatch.setattr(run_copies, f"{direction}_rows", noted)
    simulation = simulate()
    visit(simulation, list(range(100)))
    push_out(simulation)
    assert visit(simulation, list(range(100))) == 99
    # In the local class the window and the sink are neighbours on the host: they were copied together.
    assert ways["save"] == {"rows": 100 + SINK + WINDOW, "engine": 100 + SINK + WINDOW}
    assert ways["load"]["rows"] == 99 + SINK + WINDOW - 1 and ways["load"]["engine"] >= 99


@pytest.mark.parametrize("chunk", [5, 30, 64])
def test_parts_of_chunks_that_go_again_are_not_copied(chunk: int) -> None:
    simulation = simulate()
    req = simulation.admit(list(range(100)))
    while req.computed < 100:
        simulation.prefill(req, chunk)
        simulation.check_conservation()
    assert moved(simulation, Move.BACKED_UP) == [100, SINK + WINDOW]
    # Copies are under way, and what the chunks needed is gone nevertheless.
    assert simulation.tree.swa_evictable_size() + simulation.tree.swa_protected_size() == SINK + WINDOW
    simulation.finish(req)
    push_out(simulation)
    assert visit(simulation, [*range(100), 7]) == 100


def test_a_whole_path_moves_wholly() -> None:
    simulation = simulate()
    for cached in (0, 49):
        req = simulation.admit(list(range(50)), "whole", whole=True)
        assert req.cached_tokens == cached
        simulation.prefill(req, 100)
        simulation.finish(req)
        push_out(simulation)
    assert moved(simulation, Move.BACKED_UP) == [50, 50]
    assert moved(simulation, Move.LOADED_BACK) == [49, 49]


def test_a_match_counts_the_local_slots_that_it_will_hold() -> None:
    """Those that come from the host, and those behind the boundary that can be reused without them."""
    simulation = simulate()
    prompt = list(range(50))
    visit(simulation, prompt)
    simulation.notice()
    core, heads = simulation.tree.tree_core, simulation.tree.local_heads
    (sinks,) = [node for node, path, _ in simulation.nodes() if len(path) == SINK]
    frees: tuple[Any, Any] = defaultdict(list), defaultdict(list)
    core._evict_component_and_detach_lru(sinks, heads, *frees)
    simulation.tree._free_values(*frees)
    match = simulation.tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", prompt), None)))
    assert len(match.device_indices) == 0 and match.swa_host_hit_length == SINK + WINDOW
    simulation.check_conservation()


@pytest.mark.parametrize("chunk", [1000, 25])
def test_a_tail_that_comes_later_is_copied_by_itself(chunk: int) -> None:
    simulation = simulate()
    shared = list(range(100, 160))
    for number, cached in enumerate((0, SINK)):
        assert visit(simulation, shared + [number] * 30, chunk) == cached
        simulation.notice()
    # The second left a tail where the paths part, in a node that had been backed up.
    push_out(simulation)
    assert visit(simulation, shared + [9] * 30) == len(shared)
    assert moved(simulation, Move.LOADED_BACK) == [len(shared), SINK + WINDOW]


def test_write_through_selective_waits_for_a_second_use() -> None:
    simulation = HostSimulation((1000, 1000), (1000, 1000), WINDOW, SINK, "write_through_selective")
    req = simulation.admit(list(range(50)))
    simulation.prefill(req, 50, finish=True)
    assert moved(simulation, Move.BACKED_UP) == [0, 0]
    visit(simulation, list(range(60)))
    assert moved(simulation, Move.BACKED_UP)[0] >= 50


def test_of_segmented_paths_goes_to_the_host_what_a_second_request_has_gone_on_from() -> None:
    """The same prompt again, and before that one that has nothing but the lead in common."""
    simulation = simulate()
    lead, first, second = list(range(20)), list(range(100, 130)), list(range(200, 230))
    # The second finds the sink, and the third the tail that the second left where they part.
    for prompt, start, copied in (
        (lead + first, 0, 0),
        (lead + second, SINK, SINK),
        (lead + first[::-1], 20, 20),
        (lead + second, 49, 49),
    ):
        req = simulation.admit(prompt, "")
        # A request whose plan keeps nothing of it from the tree's ordinary business.
        req.redknot.plan = _Plan()  # type: ignore[assignment]
        assert req.redknot.start == start
        simulation.prefill(req, 100)
        simulation.finish(req)
        simulation.notice()
        assert moved(simulation, Move.BACKED_UP)[0] == copied


class _Plan:
    """The part of a plan that the tree reads."""

    identity = ""

    @staticmethod
    def key(tokens: Any) -> Any:
        return tokens


def test_locks_of_a_load_are_handed_on_by_splits() -> None:
    """Others branch off in the middle of what is being loaded, at both ends locked."""
    simulation = simulate()
    prompt = list(range(100))
    visit(simulation, prompt)
    push_out(simulation)
    req = simulation.admit(prompt)
    assert simulation.tree.ongoing_load_back
    for cut in (1, 40, 93, 96):
        other = simulation.admit([*prompt[:cut], 77])
        simulation.finish(other, insert=False)
        simulation.check_conservation()
    # Nothing of it can go at either end.
    locked = [node for node, path, _ in simulation.nodes() if 91 < len(path) < 100 or len(path) <= SINK]
    assert all(node.component_data[LOCAL].host_lock_ref > 0 for node in locked)
    simulation.evict_from_host(10**6, 10**6)
    simulation.evict(10**6, 10**6)
    simulation.check_conservation()
    simulation.prefill(req, 100)
    simulation.finish(req)
    simulation.check_no_locks()


def test_a_refused_load_leaves_leaves_that_can_go() -> None:
    """SGLang looks for new leaves at a path's end only, which is on the host here."""
    simulation = simulate(pools=(60, 60))
    prompt = list(range(50))
    visit(simulation, prompt[:20])
    visit(simulation, prompt)
    simulation.notice()
    # Its end goes. What then is the end on the device has no local KV, so the first 20 tokens can be reused as they are.
    simulation.evict(8, 0)
    blocker = simulation.admit([99] * 17)
    simulation.prefill(blocker, 17)
    req = simulation.admit(prompt)
    assert req.cached_tokens == 20 and moved(simulation, Move.LOADED_BACK) == [0, 0]
    simulation.finish(req, insert=False)
    simulation.finish(blocker, insert=False)
    simulation.check_conservation()
    simulation.check_no_locks()
    simulation.evict(10**6, 10**6)
    assert simulation.allocator.full_available_size() == 60


@pytest.mark.parametrize(("promised", "loads"), [(99, True), (100, False)])
def test_a_path_is_loaded_only_into_room_that_is_left_beside_it(promised: int, loads: bool) -> None:
    """What it has on the device looks like room, which others were promised, until the load locks it."""
    simulation = simulate(pools=(200, 200))
    path = array("q", range(100))
    visit(simulation, list(path[:70]))
    visit(simulation, list(path))
    simulation.notice()
    # Its last 30 tokens go. 130 slots are free then, and 70 could be evicted.
    simulation.evict(30, 0)
    tree, allocator = simulation.tree, simulation.allocator
    assert (allocator.full_available_size(), tree.full_evictable_size()) == (130, 70)
    locked = tree.lock_path(
        path, None, False, lambda: (allocator.full_available_size() + tree.full_evictable_size() - promised, 1000)
    )
    assert (locked is not None) is loads
    assert moved(simulation, Move.LOADED_BACK)[0] == (30 if loads else 0)
    if locked is not None:
        tree.dec_lock_ref(locked[1], locked[2].to_dec_params())
    simulation.check_no_locks()


def test_a_full_host_keeps_beginnings() -> None:
    """Without room nothing is copied behind what was not, and nothing breaks."""
    simulation = simulate(host=(70, 30))
    first, second = list(range(60)), list(range(200, 260))
    visit(simulation, first)
    visit(simulation, second)
    # The first is on the device as well, so the host cannot let it go.
    assert moved(simulation, Move.BACKED_UP)[0] < 120
    push_out(simulation)
    assert visit(simulation, first) == 59
    simulation.check_no_locks()


def test_tenants_share_nothing_on_the_host() -> None:
    simulation = simulate()
    prompt = list(range(60))
    visit(simulation, prompt, tenant="one")
    push_out(simulation)
    assert visit(simulation, prompt, tenant="two") == 0
    assert moved(simulation, Move.LOADED_BACK) == [0, 0]
    assert visit(simulation, prompt, tenant="one") == 59


def test_a_path_is_freed_at_both_ends() -> None:
    simulation = simulate()
    kept, gone = list(range(60)), [*range(40), *range(300, 320)]
    visit(simulation, kept)
    visit(simulation, gone)
    key = RadixKey(array("q", gone), None)
    simulation.notice()
    # Half of it is on the device, too.
    simulation.evict(10, 0)
    assert simulation.tree.free_path(key, set()) == 20
    simulation.check_conservation()
    used = [pool.size - pool.available_size() for pool in simulation.host]
    assert used[0] == 60
    assert visit(simulation, kept) == 59
    push_out(simulation)
    assert simulation.tree.free_path(RadixKey(array("q", kept), None), set()) == 60
    assert [pool.available_size() for pool in simulation.host] == [pool.size for pool in simulation.host]


def test_a_flush_empties_the_host_and_forgets_loads() -> None:
    simulation = simulate()
    visit(simulation, list(range(60)))
    push_out(simulation)
    req = simulation.admit(list(range(60)))
    simulation.finish(req, insert=False)
    assert simulation.pool.relocations.has_loads
    simulation.tree.reset()
    assert not simulation.pool.relocations.has_loads
    assert [pool.available_size() for pool in simulation.host] == [pool.size for pool in simulation.host]
