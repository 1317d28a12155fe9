# SPDX-License-Identifier: Apache-2.0
"""However a request leaves the queue, its locks and isolated prefills are known to be gone; preempted ones come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.hooks.v0_5_17 import segments
from redknot_sglang.plan.request import RequestState
from redknot_sglang.pool.relocation import RelocationQueue
from redknot_sglang.reuse.admission import SegmentAdmission
from redknot_sglang.reuse.model_facts import ModelFacts


@pytest.mark.parametrize("name", ["abort_request", "_abort_on_waiting_timeout"])
def test_all_ways_out_of_the_queue_are_watched(name: str) -> None:
    (seam,) = [seam for seam in segments.SEAMS if seam.target.endswith(f"Scheduler.{name}")]
    told: list[list[str]] = []
    reuse = SimpleNamespace(sources=SimpleNamespace(left_queue=told.append))
    scheduler = SimpleNamespace(tree_cache=SimpleNamespace(reuse=reuse), waiting_queue=["left"])
    # What the original returns stays.
    assert seam.hook(True, scheduler, "incoming") is None and told == [["left"]]
    assert seam.hook(None, SimpleNamespace(tree_cache=SimpleNamespace(), waiting_queue=[])) is None


def _waiting(name: str, **marks: Any) -> Any:
    return SimpleNamespace(name=name, redknot=RequestState(**marks))


def test_only_clients_fill_the_queue() -> None:
    (seam,) = [seam for seam in segments.SEAMS if seam.target.endswith("Scheduler._abort_on_queued_limit")]
    told: list[list[Any]] = []
    reuse = SimpleNamespace(sources=SimpleNamespace(left_queue=lambda queue: told.append(list(queue))))
    isolated, preload = _waiting("isolated", identity=(None, b"")), _waiting("preload", preloads=True)
    first, second = _waiting("first"), _waiting("second")
    queue = [first, isolated, preload, second]
    scheduler = SimpleNamespace(tree_cache=SimpleNamespace(reuse=reuse), waiting_queue=queue)

    def drops_the_last(scheduler: Any, req: Any) -> bool:
        assert scheduler.waiting_queue == [first, second]
        scheduler.waiting_queue.pop()
        return False

    assert seam.hook(drops_the_last, scheduler, _waiting("third")) is False
    assert scheduler.waiting_queue is queue and queue == [first, isolated, preload] == told[0]
    # The scheduler's own are taken whatever the queue holds.
    for own in (isolated, preload):
        assert seam.hook(lambda scheduler, req: pytest.fail("asked"), scheduler, own) is False
    plain = SimpleNamespace(tree_cache=SimpleNamespace(), waiting_queue=[])
    assert seam.hook(lambda scheduler, req: "stock", plain, first) == "stock"


@pytest.mark.parametrize("admitted", [[], ["somebody"]])
def test_who_was_preempted_for_nobody_waits_again(admitted: list[str]) -> None:
    pool = SimpleNamespace(relocations=RelocationQueue())
    tree = SimpleNamespace(token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: pool), store=None)
    reuse, queue = SegmentAdmission(tree, ModelFacts()), list[str]()
    scheduler = SimpleNamespace(tree_cache=SimpleNamespace(reuse=reuse), _add_request_to_queue=queue.append)
    adder = SimpleNamespace(can_run_list=admitted, preempt_list=["preempted"])

    def one_pass(scheduler: Any) -> str:
        reuse._adder = adder
        return "plan"

    (seam,) = [seam for seam in segments.SEAMS if seam.target.endswith("_get_new_batch_prefill_raw")]
    assert seam.hook(one_pass, scheduler) == "plan"
    # After a pass that admits somebody SGLang does it.
    assert queue == ([] if admitted else ["preempted"])
    assert seam.hook(lambda scheduler: None, scheduler) is None and len(queue) == 1 - len(admitted), "once"
