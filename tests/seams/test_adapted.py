# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's classes in the shape of 0.5.17's; the tests of tests/radix/ have its tree under random traffic."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang.hooks import all_seams
from redknot_sglang.pool.sizing import DECODE_FREE_INTERVAL
from redknot_sglang.radix.chunk_cache import HeadClassChunkCache
from redknot_sglang.radix.listeners import Move
from redknot_sglang.seams.sglang import ComponentType, EvictParams
from redknot_sglang.seams.surface import find
from redknot_sglang.versions import version_folder
from tests.radix.host_simulation import HostSimulation
from tests.radix.simulation import CALLS, Simulation
from tests.versions import IS_ADAPTED, needs_adapted

pytestmark = needs_adapted
WINDOW, SINK = 8, 2

if IS_ADAPTED:
    from sglang.srt.managers.schedule_batch import Req, ReqKvInfo, ScheduleBatch
    from sglang.srt.mem_cache.hicache_auto_size import _estimate_hicache_bytes
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.runtime_context import get_context

    from redknot_sglang.seams.v0_5_23 import arguments
    from redknot_sglang.seams.v0_5_23.adapted import NAMES, requests


def request(tree: Any, **kv: Any) -> Any:
    """A request of SGLang's that holds this, with 0.5.17's names."""
    requests.install(tree)
    made: Any = object.__new__(Req)
    made.kv, made.prefix_len, made.last_node = ReqKvInfo(**kv), 0, 7
    return made


def test_our_rooms_get_these_classes() -> None:
    for name, module in NAMES.items():
        assert find(name).__module__ == f"redknot_sglang.seams.{version_folder()}.adapted.{module}"


def test_what_a_request_holds_has_its_old_names() -> None:
    req = request(Simulation(64, 32, WINDOW, SINK).tree, req_pool_idx=3, cache_protected_len=5)
    assert (req.req_pool_idx, req.cache_protected_len, req.swa_evict_floor, req.kv.swa_evicted_seqlen) == (3, 5, 0, 0)
    req.swa_evict_floor, req.kv.swa_evicted_seqlen = 2, 9
    assert req.kv.swa_evict_floor == 2 and req.kv.get_evicted_seqlen(ComponentType.SWA) == 9
    req.prefix_len, req.extend_end = 4, 10
    assert (req.extend_range.start, req.extend_range.end, req.extend_range.length) == (4, 10, 6)
    req.set_extend_range(4, 8)
    assert req.extend_end == 8
    with pytest.raises(AssertionError, match="the prefix has 4 tokens, and rows are to begin at 3"):
        req.set_extend_range(3, 8)


def test_a_given_prefix_stands_until_the_request_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(64, 32, WINDOW, SINK)
    # Names are given once in a process, for its one tree.
    monkeypatch.setattr(requests, "_ours", set())
    for name in ("prefix_indices", "extend_range", "set_extend_range", *requests._IN_KV):
        monkeypatch.delattr(Req, name, raising=False)
    for whole, names in ((requests.PrefillAdder, requests._IN_BUDGET), (ReqKvInfo, ["swa_evicted_seqlen"])):
        for name in names:
            monkeypatch.delattr(whole, name, raising=False)
    monkeypatch.delattr(requests.Scheduler, "ps", raising=False)
    req = request(simulation.tree)
    assert req.prefix_indices.tolist() == []
    req.prefix_indices = torch.tensor([9, 8, 7])
    assert req.prefix_len == 3 and req.prefix_indices.tolist() == [9, 8, 7]
    # Another match has been made since: what was given is for another path.
    req.last_node = 8
    assert requests.given_prefix(req) is None
    req.kv.req_pool_idx = 1
    req.prefix_indices = torch.tensor([4, 5])
    assert simulation.rows.req_to_token[1, :2].tolist() == req.prefix_indices.tolist() == [4, 5]


def test_a_name_that_sglang_has_itself_is_not_taken() -> None:
    with pytest.raises(AttributeError, match="SGLang's ReqKvInfo has a holds_kv of its own"):
        requests._add(ReqKvInfo, "holds_kv", None)


def test_local_slots_are_freed_where_there_are_any() -> None:
    """A request of segments has rows without a local slot, between others that have one."""
    simulation = Simulation(64, 32, WINDOW, SINK)
    req = simulation.admit(range(12))
    simulation._compute(req, 12)
    slots = simulation.rows.req_to_token[req.req_pool_idx, 3:6].long()
    simulation.allocator.free_swa(slots)
    simulation.tree.free_kv_row(req.kv, [(0, 0), (0, 12)])
    assert simulation.allocator.full_available_size() == 64 and simulation.allocator.swa_available_size() == 32


def test_what_ours_evict_is_carried_out_at_once_and_sglangs_is_left_to_it() -> None:
    simulation = Simulation(64, 32, WINDOW, SINK)
    core, done = simulation.tree.tree_core, list[Any]()
    simulation.tree._apply_cache_actions = done.extend
    with core._carried_out(None) as actions:
        actions.append("ours")
    sglangs = list[Any]()
    with core._carried_out(sglangs) as actions:
        actions.append("theirs")
    assert done == ["ours"] and sglangs == ["theirs"]


def test_a_request_that_was_cached_without_having_ended_ends_when_it_is_released() -> None:
    simulation, ended = Simulation(64, 32, WINDOW, SINK), list[Any]()
    simulation.tree.listeners = (SimpleNamespace(request_ended=ended.append, slots_changed=lambda: None),)
    req: Any = simulation.admit(range(12))
    simulation.prefill(req, 12)
    assert not req.finished()
    simulation.tree.on_release(req, checkpointed=True)
    assert ended == [req]


def test_the_cache_without_reuse_frees_everything_and_tells_that_a_request_ended() -> None:
    simulation, ended = Simulation(64, 32, WINDOW, SINK), list[Any]()
    simulation.params.disable = True
    simulation.tree = HeadClassChunkCache(simulation.params)
    simulation.calls = CALLS(simulation.tree, simulation.rows)
    free = simulation.allocator.full_available_size(), simulation.allocator.swa_available_size()
    simulation.tree.listeners = (SimpleNamespace(request_ended=ended.append),)
    assert simulation.tree.is_chunk_cache() and not Simulation(64, 32, WINDOW, SINK).tree.is_chunk_cache()
    req = simulation.calls.request(array("q", range(12)), 1)
    req.kv.kv_allocated_len = req.computed = 12
    simulation.rows.write((1, slice(0, 12)), simulation.allocator.alloc(12))
    simulation.calls.end(req, insert=True)
    assert ended == [req]
    assert (simulation.allocator.full_available_size(), simulation.allocator.swa_available_size()) == free


def test_room_that_sglang_makes_for_an_allocation_is_told_as_any_other() -> None:
    simulation = HostSimulation((64, 64), (64, 64), WINDOW, SINK)
    req = simulation.admit(range(40))
    simulation.prefill(req, 40, finish=True)
    simulation.notice()
    simulation.tree.evict_for_alloc(EvictParams(num_tokens=30))
    assert simulation.allocator.full_available_size() >= 54
    assert simulation.figures.tokens[Move.DEMOTED][0] >= 30
    # SGLang's own `evict` stays what it is.
    assert simulation.tree._told is None


def test_a_path_on_the_host_can_be_locked_before_it_is_loaded() -> None:
    """SGLang's admission does so. What it needs has no local slots yet, its sinks neither."""
    simulation = HostSimulation((200, 200), (200, 200), WINDOW, SINK)
    simulation.prefill(simulation.admit(range(40)), 40, finish=True)
    simulation.notice()
    simulation.evict(200, 200)
    (end,) = [node for node, path, _ in simulation.nodes() if len(path) == 40]
    lock = simulation.tree.lock(end.id)
    assert end.component_data[ComponentType.SWA].lock_ref == 1 and end.evicted
    simulation.tree.unlock(lock)
    simulation.check_no_locks()


@pytest.mark.parametrize("ask", ["attach_storage_backend", "detach_storage_backend"])
def test_stores_neither_come_nor_go_while_the_server_runs(ask: str) -> None:
    given = ("file",) if ask.startswith("attach") else ()
    done, reason = getattr(HostSimulation((64, 32), (64, 32), WINDOW, SINK).tree, ask)(*given)
    assert not done and "--hicache-storage-backend" in reason


def test_host_memory_has_the_size_that_sglang_found_room_for() -> None:
    with get_context().override_server_args(device="cpu", hicache_ratio=2.0) as server_args:
        get_context().override("a machine with little memory", hicache_ratio=0.5)
        assert arguments.resolved(server_args).hicache_ratio == 2.0
        assert arguments.running(server_args).hicache_ratio == 0.5


def test_sglang_finds_that_room_by_the_bytes_of_both_classes() -> None:
    simulation = Simulation(64, 32, WINDOW, SINK)
    # One head of one number in each class, K and V in float32, and the slot that nothing is in.
    assert _estimate_hicache_bytes(simulation.params, None) == (65 + 33) * 2 * 4


@pytest.mark.parametrize("prompt", [1, 20, 100])
def test_decoding_holds_no_more_than_is_budgeted_and_no_less_than_a_row_sees(
    prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", str(DECODE_FREE_INTERVAL))
    (keep,) = [seam.hook for seam in all_seams() if seam.target.endswith("ScheduleBatch._evict_swa")]
    simulation = Simulation(1000, 400, WINDOW, SINK)
    req: Any = simulation.admit(range(prompt))
    simulation.prefill(req, prompt)
    batch: Any = object.__new__(ScheduleBatch)
    batch.reqs, batch.tree_cache, batch.forward_mode = [req], simulation.tree, ForwardMode.DECODE
    batch.token_to_kv_pool_allocator, batch.forward_iter = simulation.allocator, 0
    original, most = ScheduleBatch._evict_swa, 0
    monkeypatch.setattr(ScheduleBatch, "_evict_swa", lambda *args, **kwargs: keep(original, *args, **kwargs))
    for token in range(300):
        req.seqlen, req.decode_batch_idx = len(req.ids), req.decoded
        batch.maybe_evict_swa()
        # Fails if a row would read a slot that was freed too early.
        simulation.decode(req, 1000 + token, maintain=False)
        owned = simulation.rows.req_to_token[req.req_pool_idx, req.cache_protected_len : req.computed].long()
        most = max(most, int((simulation.pool.translate_loc_from_full_to_swa(owned) > 0).sum()))
    assert WINDOW < most <= simulation.tree.decode_window + SINK
    simulation.finish(req)
    simulation.check_conservation()
