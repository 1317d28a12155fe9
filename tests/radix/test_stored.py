# SPDX-License-Identifier: Apache-2.0
"""The tree's storage tier, one case at a time; random runs are in test_stored_property.py."""

from __future__ import annotations

from array import array

import pytest

from redknot_sglang.seams.sglang import RadixKey
from redknot_sglang.store.envelope import Refusal
from redknot_sglang.store.objects import BLOCK
from tests.radix.store_simulation import StoredSimulation
from tests.store.memory import MemoryStore
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

WINDOW, SINK = 8, 2


def simulate(
    objects: MemoryStore, host: tuple[int, int] = (2500, 1000), context: bytes | None = None
) -> StoredSimulation:
    more = {} if context is None else {"context": context}
    return StoredSimulation(objects, (2500, 2500), host, WINDOW, SINK, **more)


def visit(simulation: StoredSimulation, prompt: list[int], tenant: str | None = None, whole: bool = False) -> int:
    """A request for one token; returns how much of its prompt was cached."""
    req = simulation.admit(prompt, tenant, whole)
    while req.computed < len(prompt):
        simulation.prefill(req, 50)
    simulation.finish(req)
    simulation.check_conservation()
    return req.cached_tokens


def kinds(objects: MemoryStore) -> dict[str, int]:
    """Objects by the letter of their kind."""
    return {kind: sum(name.endswith(f"-{kind}") for name in objects.objects) for kind in "bem"}


def filled(prompt: list[int], tenant: str | None = None, whole: bool = False) -> MemoryStore:
    """A store after a server has served a prompt."""
    objects = MemoryStore()
    simulation = simulate(objects)
    visit(simulation, prompt, tenant, whole)
    simulation.work()
    simulation.check_no_locks()
    return objects


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("length", [5, BLOCK - 1, BLOCK, BLOCK + 1, 400, 4 * BLOCK])
def test_another_server_finds_a_prompt(length: int, whole: bool) -> None:
    prompt = list(range(length))
    objects = filled(prompt, whole=whole)
    assert kinds(objects) == {"b": length // BLOCK, "e": 1, "m": 1}
    other = simulate(objects)
    assert other.bring(prompt, whole=whole) == length
    other.check_conservation()
    assert visit(other, prompt, whole=whole) == length - 1
    other.work()
    assert other.store.figures.objects["written"] == 0, "what came from the store is not written again"
    other.check_no_locks()


def test_a_segment_has_forty_objects_at_most() -> None:
    assert sum(kinds(filled(list(range(2048)))).values()) <= 40


def test_a_longer_prompt_goes_on_from_the_last_end_that_is_stored() -> None:
    """Its end is not known to the server that asks, and lies within a block."""
    prompt = list(range(300))
    objects = filled(prompt)
    other = simulate(objects)
    assert other.bring([*prompt, *range(1000, 1200)]) == 300
    assert visit(other, [*prompt, *range(1000, 1200)]) == 300


def test_a_conversation_s_turns_are_all_found() -> None:
    objects = MemoryStore()
    simulation = simulate(objects)
    req = simulation.admit(list(range(100)))
    simulation.prefill(req, 100)
    simulation.work()
    for token in range(40):
        simulation.decode(req, 500 + token, maintain=True)
    answered = list(req.ids)
    simulation.finish(req)
    simulation.work()
    for prompt, found in ((list(range(100)), 100), ([*answered, 7, 7, 7, 7, 7], 140)):
        assert simulate(objects).bring(prompt) == found


def test_a_branch_s_tail_is_found_by_a_third_server() -> None:
    objects = MemoryStore()
    simulation = simulate(objects)
    shared = list(range(150))
    for number in range(2):
        visit(simulation, shared + [1000 + number] * 30)
        simulation.work()
    other = simulate(objects)
    assert other.bring(shared + [7] * 100) == 150
    assert visit(other, shared + [7] * 100) == 150


def test_no_other_namespace_and_no_other_context_finds_it() -> None:
    prompt = list(range(200))
    objects = filled(prompt, tenant="one")
    for tenant, whole in ((None, False), ("two", False), ("one", True)):
        other = simulate(objects)
        assert other.bring(prompt, tenant, whole) == 0
        assert other.store.figures.lookups["miss"] == 1 and other.store.figures.objects["read"] == 0
    assert simulate(objects, context=bytes(32)).bring(prompt, "one") == 0
    assert simulate(objects).bring(prompt, "one") == 200


def test_what_the_host_has_of_a_path_is_not_read_again() -> None:
    prompt = list(range(600))
    objects = filled(prompt)
    other = simulate(objects)
    visit(other, prompt[:300])
    other.forward_begins()
    other.notice()
    assert other.bring(prompt) == 300
    # Two blocks, of which the host has the first in part, and the end.
    assert other.store.figures.objects["read"] == 3
    assert visit(other, prompt) == 599
    other.work()
    other.check_no_locks()


def test_a_path_that_is_computed_meanwhile_keeps_its_own_slots() -> None:
    prompt = list(range(200))
    objects = filled(prompt)
    other = simulate(objects)
    job = other.fetch(prompt)
    other.read()
    other.notice()
    assert job is not None and job.slots is not None
    visit(other, prompt)
    other.work()
    assert job.loaded == 0
    other.check_conservation()
    other.evict(10**6, 10**6)
    assert visit(other, prompt) == 199
    other.check_no_locks()


@pytest.mark.parametrize(
    ("change", "why"),
    [("cut", Refusal.CUT), ("bit", Refusal.GARBLED), ("head", Refusal.GARBLED), ("swap", Refusal.OTHER_PATH)],
)
def test_a_bad_object_is_not_used_and_written_anew(change: str, why: Refusal) -> None:
    prompt = list(range(400))
    objects = filled(prompt)
    bad, another = [name for name in objects.objects if name.endswith("-b")][:2]
    data = objects.objects[bad]
    if change == "cut":
        objects.objects[bad] = data[:-1]
    elif change == "swap":
        objects.objects[bad] = objects.objects[another]
    else:
        data[-1 if change == "bit" else 3] ^= 16
    other = simulate(objects)
    assert other.bring(prompt) == 0
    assert other.store.figures.refused[why] == 1 and bad not in objects.objects
    assert visit(other, prompt) == 0
    other.work()
    assert bad in objects.objects
    assert simulate(objects).bring(prompt) == 400


def test_an_object_of_another_map_is_not_used() -> None:
    prompt = list(range(100))
    theirs = MemoryStore()
    stranger = simulate(theirs, context=bytes(32))
    visit(stranger, prompt)
    stranger.work()
    objects = filled(prompt)
    ours = [name for name in objects.objects if name.endswith("-e")]
    (objects.objects[ours[0]],) = [data for name, data in theirs.objects.items() if name.endswith("-e")]
    other = simulate(objects)
    assert other.bring(prompt) == 0
    assert other.store.figures.refused[Refusal.OTHER_MAP] == 1


def test_a_missing_block_is_a_miss() -> None:
    prompt = list(range(200))
    objects = filled(prompt)
    del objects.objects[next(name for name in objects.objects if name.endswith("-b"))]
    assert simulate(objects).bring(prompt) == 0


def test_a_store_that_fails_is_left_alone_for_a_while() -> None:
    objects = MemoryStore()
    simulation = simulate(objects)
    objects.fails = "no space left"
    visit(simulation, list(range(100)))
    simulation.work()
    assert simulation.store.writing.failures == 1 and simulation.store.state == "failing"
    visit(simulation, list(range(500, 600)))
    simulation.work()
    assert objects.calls == 1 and simulation.store.figures.skipped == 1
    assert simulation.bring(list(range(900, 1000))) == 0
    assert simulation.store.reading.failures == 1
    assert simulation.fetch(list(range(800, 900))) is None
    simulation.check_no_locks()


def test_nobody_waits_longer_than_the_deadline_and_slots_come_back() -> None:
    prompt = list(range(200))
    objects = filled(prompt)
    other = simulate(objects)
    job = other.fetch(prompt)
    other.read()
    other.notice()
    assert job is not None and not job.is_settled and job.slots is not None
    job.deadline = 0.0
    other.notice()
    assert job.is_settled and other.store.figures.lookups["late"] == 1
    other.check_conservation()
    # The thread comes to it later, and touches nothing.
    other.read()
    other.notice()
    other.check_no_locks()
    assert other.fetch(prompt) is None, "it rests"


def test_a_flush_takes_back_what_is_under_way() -> None:
    prompt = list(range(200))
    objects = filled(prompt)
    other = simulate(objects)
    visit(other, list(range(500, 700)))
    other.forward_begins()
    other.notice()
    job = other.fetch(prompt)
    other.read()
    other.notice()
    assert other.store.saving and job is not None and job.slots is not None
    other.tree.reset()
    assert not other.store.saving and not other.store.fetching and job.is_settled
    written = len(objects.objects)
    while other.write() or other.read():
        other.notice()
    assert len(objects.objects) == written and other.store.figures.objects["read"] == 0
    assert [pool.available_size() for pool in other.host] == [pool.size for pool in other.host]


def test_a_path_that_is_freed_is_not_held_for_the_store() -> None:
    objects = MemoryStore()
    simulation = simulate(objects)
    prompt, kept = list(range(200)), list(range(500, 700))
    for path in (kept, prompt):
        visit(simulation, path)
    simulation.forward_begins()
    simulation.notice()
    assert len(simulation.store.saving) == 2
    assert simulation.tree.free_path(RadixKey(array("q", prompt), None), set()) == 200
    simulation.check_conservation()
    simulation.work()
    simulation.check_no_locks()
    # The other one is written nevertheless.
    assert simulate(objects).bring(kept) == 200 and simulate(objects).bring(prompt) == 0


def test_without_room_on_the_host_nothing_comes() -> None:
    prompt = list(range(200))
    objects = filled(prompt)
    other = simulate(objects, host=(150, 100))
    assert other.bring(prompt) == 0
    other.check_conservation()
    other.check_no_locks()


def test_what_waits_to_be_written_leaves_most_of_the_host_free() -> None:
    simulation = simulate(MemoryStore(), host=(400, 200))
    for number in range(8):
        visit(simulation, [number * 1000 + at for at in range(60)])
        simulation.forward_begins()
        simulation.notice()
    assert sum(job.held[0] for job in simulation.store.saving) <= 100 + 60
    assert simulation.store.figures.skipped > 0
    simulation.work()
    simulation.check_no_locks()


def test_a_store_of_other_weights_is_not_asked() -> None:
    prompt = list(range(200))
    objects = filled(prompt)
    other = simulate(objects)
    visit(other, list(range(500, 700)))
    other.forward_begins()
    other.notice()
    job = other.fetch(prompt)
    other.read()
    other.notice()
    assert other.store.saving and job is not None and job.slots is not None
    other.tree.stop_store("new weights")
    other.check_conservation()
    other.check_no_locks()
    assert other.fetch(prompt) is None and other.store.state == "stopped"
    visit(other, list(range(800, 900)))
    other.work()
    assert other.store.figures.objects["written"] == 0
    # What both had cached is still there.
    assert visit(other, list(range(500, 700))) == 199
