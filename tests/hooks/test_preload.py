# SPDX-License-Identifier: Apache-2.0
"""Questions about preloaded segments where there is no prefix cache that could hold any."""

from __future__ import annotations

from types import SimpleNamespace

from redknot_sglang.hooks.v0_5_17 import preload
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
