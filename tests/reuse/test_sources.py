# SPDX-License-Identifier: Apache-2.0
"""What a request that waits for segments looks up in each pass of the scheduler."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_policy import AddReqResult

from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.request import RequestState
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.sources import SegmentSources

TOKENS = list(range(40))
PLAN = Plan(((2, 20), (20, 38)), parse_repair("boundary:2"))
OWN_PATH = 77
WAITS, NO_ROOM = AddReqResult.CONTINUE, AddReqResult.NO_TOKEN


class Adder:
    """Budgets of one pass, while somebody runs."""

    def __init__(self, slots: float = 1000, local: int = 1000, idle: bool = False) -> None:
        self.can_run_list = [] if idle else ["somebody"]
        self.running_batch, self.rem_total_token_offset = None, 0
        self._slots, self.rem_swa_tokens = slots, local

    @property
    def rem_total_tokens(self) -> float:
        return self._slots - self.rem_total_token_offset


class Tree:
    """Holds some paths, counts lookups and locks."""

    sliding_window_size, local_heads = 8, SimpleNamespace(window=6, sink=2)
    has_host_tier = False

    def __init__(self) -> None:
        self.held: set[bytes] = set()
        self.on_host: set[bytes] = set()
        self.lookups = self.locks = 0
        # Nodes at the end of requests' own paths that are locked.
        self.own: list[int] = []

    def lock_path(
        self, key: array[int], namespace: str | None, whole: bool, room: Callable[[], tuple[float, float]] | None = None
    ) -> Any:
        self.lookups += 1
        if room is not None and key.tobytes() in self.on_host and len(key) < min(room()):
            # To load evicts what nobody has locked.
            assert self.own == [OWN_PATH]
            self.held.add(key.tobytes())
        if key.tobytes() not in self.held:
            return None
        self.locks += 1
        return torch.arange(len(key)), key, SimpleNamespace(to_dec_params=lambda: None)

    def inc_lock_ref(self, node: int) -> Any:
        self.own.append(node)
        return SimpleNamespace(to_dec_params=lambda: None)

    def dec_lock_ref(self, node: Any, params: Any) -> None:
        if node in self.own:
            self.own.remove(node)
        else:
            self.locks -= 1


class Prefills(IsolatedPrefills):
    """Without SGLang's requests."""

    def _make(self, req: Any, key: array[int]) -> Any:
        return SimpleNamespace(req_pool_idx=None, redknot=RequestState())


@pytest.fixture
def tree() -> Tree:
    found = Tree()
    first, _ = PLAN.paths(TOKENS, 0)
    found.held.add(first.key.tobytes())
    return found


@pytest.fixture
def sources(tree: Tree) -> SegmentSources:
    found = SegmentSources(tree)
    found.isolated = Prefills()
    found.isolated.scheduler = SimpleNamespace(waiting_queue=[])
    return found


def request(sources: SegmentSources) -> Any:
    params = SimpleNamespace(max_new_tokens=10)
    found = SimpleNamespace(full_untruncated_fill_ids=TOKENS, extra_key=None, req_pool_idx=None, last_node=OWN_PATH)
    found.sampling_params, found.output_ids, found.redknot = params, [7], RequestState(PLAN)
    sources.isolated.scheduler.waiting_queue.append(found)
    return found


def test_many_that_wait_for_one_path_look_it_up_once_each(sources: SegmentSources, tree: Tree) -> None:
    waiting = [request(sources) for _ in range(5)]
    for _ in range(3):
        assert all(sources.gather(Adder(), req, PLAN, 0) is WAITS for req in waiting)
    queue = sources.isolated.scheduler.waiting_queue
    # The first looks for what is missing in every pass, so that nobody evicts what has come.
    assert len(queue) == 6 and tree.lookups == 2 * 5 + 2
    assert tree.locks == 1, "only the first keeps what it found"
    # It is there: they come to it, one after the other.
    sources.isolated.done(queue[1])
    _, second = PLAN.paths(TOKENS, 0)
    tree.held.add(second.key.tobytes())
    assert not any(sources.gather(Adder(), req, PLAN, 0) for req in waiting)
    assert tree.lookups == 2 * 5 + 2 + 1 + 2 * 4 and tree.locks == 2 * 5


# 40 tokens, an answer of 9 more and a segment of 18 with two slots for SGLang; locally 8 + 2 * 6 and 2 + 6.
@pytest.mark.parametrize(("slots", "local", "fits"), [(70, 29, True), (69, 29, False), (70, 28, False)])
def test_what_does_not_fit_is_not_computed_while_others_run(
    sources: SegmentSources, tree: Tree, slots: int, local: int, fits: bool
) -> None:
    first, adder = request(sources), Adder(slots, local)
    assert sources.gather(adder, first, PLAN, 0) is (WAITS if fits else NO_ROOM)
    assert adder.rem_total_token_offset == (49 if fits else 0), "its own slots are kept for it"
    queue = sources.isolated.scheduler.waiting_queue
    assert len(queue) == 1 + fits and tree.locks == 1
    # Where nobody runs only locks could be in the way, which others give up.
    assert sources.gather(Adder(slots, local, idle=True), first, PLAN, 0) is WAITS and len(queue) == 2
    # Once the prefill has slots, they are not counted again.
    queue[1].req_pool_idx = 3
    assert sources.gather(Adder(50, 21), first, PLAN, 0) is WAITS


def test_who_waits_gives_up_locks_when_there_is_no_room(sources: SegmentSources, tree: Tree) -> None:
    first = request(sources)
    assert sources.gather(Adder(), first, PLAN, 0) is WAITS and tree.locks == 1
    assert sources.gather(Adder(slots=0), first, PLAN, 0) is NO_ROOM and tree.locks == 0
    # Without anybody's locks it looks again, so that it gets them back.
    assert sources.gather(Adder(), first, PLAN, 0) is WAITS and tree.locks == 1


def test_a_path_that_was_dropped_is_asked_for_again(sources: SegmentSources, tree: Tree) -> None:
    first = request(sources)
    assert sources.gather(Adder(), first, PLAN, 0) is WAITS
    del sources.isolated.scheduler.waiting_queue[1:]
    sources.left_queue([first])
    assert sources.gather(Adder(), first, PLAN, 0) is WAITS
    assert len(sources.isolated.scheduler.waiting_queue) == 2


@pytest.mark.parametrize(("slots", "comes_back"), [(70, True), (69, False)])
def test_what_is_on_the_host_comes_back_if_there_is_room(
    sources: SegmentSources, tree: Tree, slots: int, comes_back: bool
) -> None:
    """The first that waits takes any room for it; others only what leaves room for themselves."""
    _, second = PLAN.paths(TOKENS, 0)
    waits, other = request(sources), request(sources)
    # Nobody can load yet, so that the first waits.
    assert sources.gather(Adder(), waits, PLAN, 0) is WAITS
    sources.isolated.done(sources.isolated.scheduler.waiting_queue[1])
    tree.has_host_tier = True
    tree.on_host.add(second.key.tobytes())
    assert sources.gather(Adder(slots), other, PLAN, 0) is (None if comes_back else NO_ROOM)
    assert (second.key.tobytes() in tree.held) is comes_back
    assert sources.gather(Adder(50), waits, PLAN, 0) is None
    assert second.key.tobytes() in tree.held and not tree.own
