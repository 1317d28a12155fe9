# SPDX-License-Identifier: Apache-2.0
"""However a request leaves the queue, its locks and isolated prefills are known to be gone; preempted ones come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.reuse.admission import SegmentAdmission
from redknot_sglang.seams import segments


@pytest.mark.parametrize("name", ["abort_request", "_abort_on_waiting_timeout", "_abort_on_queued_limit"])
def test_all_ways_out_of_the_queue_are_watched(name: str) -> None:
    (seam,) = [seam for seam in segments.SEAMS if seam.target.endswith(f"Scheduler.{name}")]
    told: list[list[str]] = []
    reuse = SimpleNamespace(sources=SimpleNamespace(left_queue=told.append))
    scheduler = SimpleNamespace(tree_cache=SimpleNamespace(reuse=reuse), waiting_queue=["left"])
    # What the original returns stays.
    assert seam.hook(True, scheduler, "incoming") is None and told == [["left"]]
    assert seam.hook(None, SimpleNamespace(tree_cache=SimpleNamespace(), waiting_queue=[])) is None


@pytest.mark.parametrize("admitted", [[], ["somebody"]])
def test_who_was_preempted_for_nobody_waits_again(admitted: list[str]) -> None:
    tree = SimpleNamespace(token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: None))
    reuse, queue = SegmentAdmission(tree), list[str]()
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
