# SPDX-License-Identifier: Apache-2.0
"""What SGLang's prefill and decode servers do otherwise under RedKnot, one function at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang import active
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.hooks import all_seams
from redknot_sglang.placement.needed import most_local
from redknot_sglang.placement.receiving import UNLIMITED
from redknot_sglang.plan.request import RequestState
from tests.placement.test_slots import one_of_two
from tests.placement.test_transfer import queues, request

# Prefill and decode apart are refused with other versions.
pytestmark = pytest.mark.pinned
HOOKS: dict[str, Callable[..., Any]] = {
    seam.target.rsplit(".", 1)[1]: seam.hook for seam in all_seams() if seam.target.startswith("disaggregation.")
}
HEADS = one_of_two(window=16, sink=4)
MOST = most_local(UNLIMITED, HEADS)


def arguments(redknot: bool = True) -> Any:
    found = SimpleNamespace()
    if redknot:
        active.attach(found, RedKnotConfig(Path("map.json")))
    return found


def prealloc(size: int, running: list[Any], redknot: bool = True) -> Any:
    found = queues(size, running)
    found.scheduler.server_args = arguments(redknot)
    found.token_to_kv_pool = SimpleNamespace(whole_map=HEADS)
    return found


class Called:
    """SGLang's function: what it was called with, and a result."""

    def __init__(self, result: Any = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        return self.result


def test_an_isolated_prefill_sends_to_nobody_and_is_done_with_its_last_chunk() -> None:
    original, sender = Called(), SimpleNamespace(send=Called())
    isolated = SimpleNamespace(redknot=RequestState(identity=(None, b"1")), disagg_kv_sender=sender)
    HOOKS["send_kv_chunk"](original, None, isolated)
    assert not sender.send.calls
    HOOKS["send_kv_chunk"](original, None, isolated, last_chunk=True)
    assert sender.send.calls == [([],)] and not original.calls
    client = SimpleNamespace(redknot=RequestState(), disagg_kv_sender=sender)
    HOOKS["send_kv_chunk"](original, None, client, True, 7)
    assert original.calls == [(None, client, True, 7)]


@pytest.mark.parametrize(
    ("redknot", "plan", "host", "sent"),
    [(True, None, False, True), (True, "plan", False, False), (True, None, True, False), (False, "plan", True, True)],
)
def test_nothing_is_sent_before_it_is_there(redknot: bool, plan: Any, host: bool, sent: bool) -> None:
    original = Called()
    scheduler = SimpleNamespace(server_args=arguments(redknot), enable_hierarchical_cache=host)
    HOOKS["maybe_send_cached_prefix_chunk"](original, scheduler, SimpleNamespace(redknot=RequestState(plan=plan)))
    assert len(original.calls) == sent


def test_requests_that_failed_in_the_queue_give_up_their_locks() -> None:
    left = Called()
    tree = SimpleNamespace(reuse=SimpleNamespace(sources=SimpleNamespace(left_queue=left)))
    HOOKS["resolve_waiting_queue_bootstrap"](None, SimpleNamespace(tree_cache=tree, waiting_queue=["left"]))
    assert left.calls == [(["left"],)]
    HOOKS["resolve_waiting_queue_bootstrap"](None, SimpleNamespace(tree_cache=SimpleNamespace()))


@pytest.mark.parametrize(("size", "budget"), [(2 * MOST, 900), (2 * MOST - 1, 0)])
def test_no_request_is_taken_that_might_run_out_of_local_slots(size: int, budget: int) -> None:
    queue = prealloc(size, [request(500, 500)])
    assert HOOKS["_allocatable_token_budgets"](Called(900), queue) == budget
    # SGLang asks again after each one that it takes in a pass.
    assert HOOKS["_allocatable_token_budgets"](Called(900), queue, extra_reserved_reqs=1) == 0
    assert HOOKS["_allocatable_token_budgets"](Called(-5), queue) == -5


def test_a_long_answer_is_no_reason_to_wait_and_a_retracted_request_is() -> None:
    queue = prealloc(3 * MOST, [request(500, 500)])
    assert HOOKS["_swa_aware_allocatable_token_budgets"](Called((900, 1)), queue) == (900, UNLIMITED)
    coming_back = HOOKS["_swa_aware_allocatable_token_budgets"](Called((900, 1)), queue, count_retracted=False)
    assert coming_back == (900, 2 * MOST)
    assert HOOKS["_prealloc_required_tokens"](Called((700, 700)), queue, request(500, 500)) == (700, MOST)


def test_without_redknot_sglang_decides() -> None:
    queue = prealloc(0, [], redknot=False)
    assert HOOKS["_allocatable_token_budgets"](Called(900), queue) == 900
    assert HOOKS["_swa_aware_allocatable_token_budgets"](Called((900, 1)), queue) == (900, 1)
    assert HOOKS["_prealloc_required_tokens"](Called((700, 600)), queue, None) == (700, 600)
    assert HOOKS["_swa_tail_len"](Called(33), queue, 40) == 33
    assert HOOKS["_uses_swa_tail_prealloc"](Called(False), queue) is False
    assert HOOKS["_ensure_prefill_info"](Called(({}, ["req"])), queue, {}) == ({}, ["req"])


def test_local_slots_are_taken_for_sinks_and_window() -> None:
    queue = prealloc(0, [])
    assert HOOKS["_uses_swa_tail_prealloc"](Called(False), queue) is True
    assert HOOKS["_swa_tail_len"](Called(100), queue, 100) == 4 + 15


def test_a_peer_that_does_not_fit_ends_no_decode_server() -> None:
    def refuses(kv_manager: Any, address: str) -> bool:
        raise RuntimeError("Page size mismatch")

    for redknot in (True, False):
        manager = SimpleNamespace(server_args=arguments(redknot))
        if redknot:
            assert HOOKS["try_ensure_parallel_info"](refuses, manager, "a:1") is False
            assert manager.redknot_refused == {"a:1": "Page size mismatch"}
        else:
            with pytest.raises(RuntimeError):
                HOOKS["try_ensure_parallel_info"](refuses, manager, "a:1")
