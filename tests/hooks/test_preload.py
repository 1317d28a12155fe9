# SPDX-License-Identifier: Apache-2.0
"""Questions about preloaded segments where no prefix cache could hold any; and what the scheduler refuses of what comes in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from redknot_sglang import active
from redknot_sglang.config import STARTED, UNKNOWN, UPDATED, Certification, RedKnotConfig
from redknot_sglang.hooks.v0_5_17 import preload
from redknot_sglang.plan.request import state_of
from redknot_sglang.reuse.model_facts import ModelFacts


def test_without_a_radix_cache_nothing_is_listed_and_nothing_is_forgotten() -> None:
    runner = SimpleNamespace(attn_backend=SimpleNamespace(facts=ModelFacts()))
    scheduler = SimpleNamespace(
        tree_cache=SimpleNamespace(), tp_worker=SimpleNamespace(model_runner=runner), max_req_input_len=9
    )
    for _ in range(2):
        preloaded = preload._segments_of(scheduler)
        assert preloaded.listed() == [] and preloaded.forget(None) == []
    assert preload._segments_of(scheduler) is preloaded, "one list for each scheduler"


@pytest.mark.parametrize(
    ("weights", "enforced", "policy", "refused"),
    [
        (STARTED, True, "boundary:4", False),
        (UPDATED, True, "boundary:4", True),
        (UNKNOWN, True, "boundary:4", True),
        (UPDATED, False, "boundary:4", False),
        (UPDATED, True, None, False),
    ],
)
def test_what_new_weights_leave_uncertified_is_refused_wherever_it_was_read(
    weights: str, enforced: bool, policy: str | None, refused: bool
) -> None:
    """Of several processes that read requests some may not have heard of an update."""
    found = Certification("digest", ("exact", "boundary:4"), enforced=enforced).with_weights(weights)
    scheduler = SimpleNamespace(server_args=SimpleNamespace())
    active.attach(scheduler.server_args, RedKnotConfig(Path("map.json"), certification=found))
    params = (
        None if policy is None else {"redknot_mode": "segmented", "redknot_segments": [2, 8], "redknot_repair": policy}
    )
    aborted: list[str] = []
    req = SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=params),
        origin_input_ids=list(range(12)),
        output_ids=[],
        set_finish_with_abort=aborted.append,
    )
    preload.mark_preload(scheduler, req)
    assert len(aborted) == refused and all("boundary:4 is not certified" in why for why in aborted)
    assert (state_of(req).plan is None) == (refused or policy is None)
