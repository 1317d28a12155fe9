# SPDX-License-Identifier: Apache-2.0
"""However a request leaves the queue, its locks and the isolated prefills that went with it are known to be gone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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
