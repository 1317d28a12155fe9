# SPDX-License-Identifier: Apache-2.0
"""What a request that waits for segments looks up in each pass of the scheduler."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.plan import Plan
from redknot_sglang.reuse.repair import parse_repair
from redknot_sglang.reuse.sources import SegmentSources

TOKENS = list(range(40))
PLAN = Plan(((2, 20), (20, 38)), parse_repair("boundary:2"))
ROOM: Any = SimpleNamespace(rem_total_tokens=1, rem_swa_tokens=1)


class Tree:
    """Holds some paths, counts lookups and locks."""

    def __init__(self) -> None:
        self.held: set[bytes] = set()
        self.lookups = self.locks = 0

    def lock_path(self, key: array[int], namespace: str | None, whole: bool) -> Any:
        self.lookups += 1
        if key.tobytes() not in self.held:
            return None
        self.locks += 1
        return torch.arange(len(key)), key, SimpleNamespace(to_dec_params=lambda: None)

    def dec_lock_ref(self, node: Any, params: Any) -> None:
        self.locks -= 1


class Prefills(IsolatedPrefills):
    """Without SGLang's requests."""

    def _make(self, req: Any, key: array[int]) -> Any:
        return SimpleNamespace(req_pool_idx=None)


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
    found = SimpleNamespace(full_untruncated_fill_ids=TOKENS, extra_key=None, req_pool_idx=None)
    sources.isolated.scheduler.waiting_queue.append(found)
    return found


def test_many_that_wait_for_one_path_look_it_up_once_each(sources: SegmentSources, tree: Tree) -> None:
    waiting = [request(sources) for _ in range(5)]
    for _ in range(3):
        assert not any(sources.gather(ROOM, req, PLAN, 0) for req in waiting)
    queue = sources.isolated.scheduler.waiting_queue
    assert len(queue) == 6 and tree.lookups == 2 * 5
    assert tree.locks == 1, "only the first keeps what it found"
    # It is there: they come to it, one after the other.
    sources.isolated.done(queue[1])
    _, second = PLAN.paths(TOKENS, 0)
    tree.held.add(second.key.tobytes())
    assert all(sources.gather(ROOM, req, PLAN, 0) for req in waiting)
    assert tree.lookups == 2 * 5 + 1 + 2 * 4 and tree.locks == 2 * 5


def test_who_waits_gives_up_locks_when_there_is_no_room(sources: SegmentSources, tree: Tree) -> None:
    first = request(sources)
    assert not sources.gather(ROOM, first, PLAN, 0) and tree.locks == 1
    none: Any = SimpleNamespace(rem_total_tokens=0, rem_swa_tokens=1)
    assert not sources.gather(none, first, PLAN, 0) and tree.locks == 0
    # Without anybody's locks it looks again, so that it gets them back.
    assert not sources.gather(ROOM, first, PLAN, 0) and tree.locks == 1


def test_a_path_that_was_dropped_is_asked_for_again(sources: SegmentSources, tree: Tree) -> None:
    first = request(sources)
    assert not sources.gather(ROOM, first, PLAN, 0)
    del sources.isolated.scheduler.waiting_queue[1:]
    sources.left_queue([first])
    assert not sources.gather(ROOM, first, PLAN, 0)
    assert len(sources.isolated.scheduler.waiting_queue) == 2
