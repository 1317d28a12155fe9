# SPDX-License-Identifier: Apache-2.0
"""Requests ask the store once for each of their paths, in stages, and wait no longer than they may."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.plan.identity import ASKING, WHOLE
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.request import RequestState
from redknot_sglang.reuse import stored
from redknot_sglang.reuse.stored import StoredPaths
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

PROMPT = array("q", range(100))


class Job:
    def __init__(self) -> None:
        self.is_settled, self.loaded = False, 0


class Tree:
    """Notes what is asked for."""

    def __init__(self, waits: bool = True) -> None:
        self.store: Any = SimpleNamespace(patience=SimpleNamespace(waits=waits))
        self.asked: list[tuple[str | None, int]] = []
        self.jobs: list[Job] = []

    def fetch(self, tokens: Any, namespace: str | None) -> Job:
        self.asked.append((namespace, len(tokens)))
        self.jobs.append(Job())
        return self.jobs[-1]

    def settle(self, loaded: int = 0) -> None:
        for job in self.jobs:
            job.is_settled, job.loaded = True, loaded


def request(plan: Plan | None = None, **state: Any) -> Any:
    return SimpleNamespace(
        redknot=RequestState(plan, **state), origin_input_ids=PROMPT, full_untruncated_fill_ids=PROMPT, extra_key="one"
    )


def test_an_exact_request_asks_once_and_says_what_came() -> None:
    tree, req = Tree(), request()
    paths = StoredPaths(tree)
    assert paths.must_wait(req) and paths.must_wait(req)
    assert tree.asked == [("one", 100)]
    tree.settle(loaded=64)
    assert not paths.must_wait(req) and req.storage_hit_length == 64 and len(tree.asked) == 1
    # A policy that selects has left less of the prompt.
    req.origin_input_ids = req.full_untruncated_fill_ids = PROMPT[:60]
    assert paths.must_wait(req) and tree.asked[1:] == [("one", 60)]


def test_a_segmented_request_asks_for_its_own_path_and_then_for_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "reusable_tokens", lambda tree, key, whole: 0)
    plan = Plan(((10, 40), (40, 90)), parse_repair("blend:0.5"))
    tree, req = Tree(), request(plan)
    paths = StoredPaths(tree)
    assert paths.must_wait(req)
    assert tree.asked == [("one" + plan.identity, 100)]
    tree.settle()
    assert paths.must_wait(req)
    # Text before a segment whose rows are chosen is computed as if it stood alone.
    assert tree.asked[1:] == [("one", 10), ("one" + WHOLE, 30), ("one" + WHOLE, 50)]
    tree.settle()
    assert not paths.must_wait(req) and len(tree.asked) == 4


def test_what_its_own_path_reaches_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "reusable_tokens", lambda tree, key, whole: 50)
    tree, req = Tree(), request(Plan(((10, 40), (40, 90)), parse_repair("none")))
    paths = StoredPaths(tree)
    paths.must_wait(req)
    tree.settle()
    paths.must_wait(req)
    assert tree.asked[1:] == [("one", 50)]


def test_a_policy_that_selects_asks_for_all_documents_at_once() -> None:
    tree, req = Tree(), request(Plan(((10, 40), (40, 90)), parse_repair("question:1")))
    assert StoredPaths(tree).must_wait(req)
    assert tree.asked == [("one", 30), ("one", 50), ("one" + ASKING, 10)]


def test_nobody_waits_who_need_not() -> None:
    tree = Tree(waits=False)
    assert not StoredPaths(tree).must_wait(request()) and len(tree.asked) == 1
    tree = Tree()
    assert not StoredPaths(tree).must_wait(request(identity=("one", b""))) and not tree.asked
    tree.store = None
    assert not StoredPaths(tree).must_wait(request()) and not tree.asked


def test_the_head_of_the_queue_is_asked_for_ahead() -> None:
    tree = Tree()
    queue: Any = SimpleNamespace(waiting=[request() for _ in range(20)])
    StoredPaths(tree).ask_ahead(queue)
    assert len(tree.asked) == 16
    StoredPaths(tree).ask_ahead(queue)
    assert len(tree.asked) == 16
