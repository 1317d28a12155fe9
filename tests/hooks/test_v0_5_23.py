# SPDX-License-Identifier: Apache-2.0
"""Hooks that SGLang 0.5.23 needs in the place of earlier ones; they import with every version."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.errors import RedKnotError
from redknot_sglang.hooks.v0_5_17.refusals import refuse_unsupported
from redknot_sglang.hooks.v0_5_23 import SEAMS, scheduler
from redknot_sglang.hooks.v0_5_23.arguments import with_forced
from redknot_sglang.hooks.v0_5_23.refusals import ARGUMENTS


def hook(name: str) -> Any:
    (found,) = [seam.hook for seam in scheduler.SEAMS if seam.target.endswith("." + name)]
    assert any(seam.hook is found for seam in SEAMS)
    return found


def test_our_order_is_the_default_and_graphs_of_prefills_are_off_and_said_to_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        forced = with_forced({"model_path": "model", "device": "cpu"})
    assert forced["radix_eviction_policy"] == "redknot" and forced["cuda_graph_backend_prefill"] == "disabled"
    assert forced["radix_cache_backend"] == "redknot"
    assert "RedKnot: no graphs of prefills with SGLang 0.5.23" in caplog.text
    given = with_forced({"radix_eviction_policy": "lru", "cuda_graph_backend_prefill": "disabled"})
    assert given["radix_eviction_policy"] == "lru" and given["cuda_graph_backend_prefill"] == "disabled"


@pytest.mark.parametrize("backend", ["breakable", "full", "tc_piecewise"])
def test_graphs_of_prefills_are_refused_with_what_to_write(backend: str) -> None:
    with pytest.raises(RedKnotError, match=f"--cuda-graph-backend-prefill {backend} cannot be used .* use disabled"):
        with_forced({"cuda_graph_backend_prefill": backend})


@pytest.mark.parametrize(("name", "value"), [("enable_deterministic_inference", True), ("rl_on_policy_target", "fsdp")])
def test_what_sglang_would_refuse_for_our_backend_is_refused_before_that(name: str, value: object) -> None:
    with pytest.raises(RedKnotError, match=f"--{name.replace('_', '-')} {value} cannot be used"):
        with_forced({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_dp_size", 2),
        ("hicache_storage_backend", "mooncake"),
        ("hicache_host_memory_mode", "buffer_only"),
        ("disaggregation_mode", "decode"),
        ("tokenizer_worker_num", 2),
    ],
)
def test_what_was_not_tried_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RedKnotError, match=f"--{name.replace('_', '-')} .* cannot be used with --redknot yet"):
        refuse_unsupported(SimpleNamespace(**{name: value}), None, ARGUMENTS)


@pytest.mark.parametrize(("name", "value"), [("enable_hierarchical_cache", True), ("hicache_storage_backend", "file")])
def test_no_row_refuses_the_host_tier_and_files(name: str, value: object) -> None:
    assert [row for row in ARGUMENTS if row[0] == name and value not in row[1]] == []


def test_the_memory_check_leaves_out_rows_without_a_local_slot() -> None:
    kv = SimpleNamespace(swa_evicted_seqlen=9, kv_allocated_len=12)
    req = SimpleNamespace(cache_protected_len=1, kv=kv, redknot=SimpleNamespace(dead=[(8, 11)]))
    checker = SimpleNamespace(tree_cache=SimpleNamespace(local_window=8), _requests_owning_rows=lambda: [req])
    assert hook("_get_total_uncached_sizes")((11, 3), checker) == (11, 1)
    checker.tree_cache = SimpleNamespace()
    assert hook("_get_total_uncached_sizes")((11, 3), checker) is None, "stock SGLang's own figures stay"


@pytest.mark.parametrize(("whole", "freed"), [(True, 0), (False, 1)])
def test_whole_paths_keep_their_local_slots(whole: bool, freed: int) -> None:
    calls: list[int] = []
    req = SimpleNamespace(redknot=SimpleNamespace(whole=whole))
    batch = SimpleNamespace(tree_cache=SimpleNamespace(local_window=8))
    hook("_evict_swa")(lambda batch, req, pre_len: calls.append(pre_len), batch, req, 20)
    assert len(calls) == freed


def test_admission_leaves_the_windows_of_running_requests() -> None:
    kv = SimpleNamespace(kv_allocated_len=12, swa_evicted_seqlen=9)
    sampling = SimpleNamespace(max_new_tokens=100)
    req = SimpleNamespace(kv=kv, cache_protected_len=4, sampling_params=sampling, output_ids=[1])
    adder = SimpleNamespace(
        tree_cache=SimpleNamespace(decode_window=8),
        memory_budget=SimpleNamespace(swa_offset=1),
        running_batch=SimpleNamespace(reqs=[req]),
    )
    hook("__init__")(None, adder)
    assert adder.memory_budget.swa_offset == 1 + (8 - 3)
