# SPDX-License-Identifier: Apache-2.0
"""The slots of a prompt whose KV travels, over real pools: equally many on both sides, in the same order, and none lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.common import free_swa_out_of_window_slots
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from redknot_sglang.heads import HeadMap
from redknot_sglang.placement.needed import most_local, needed_local, size_of
from redknot_sglang.placement.slots import allocate, by_state, local_slots
from redknot_sglang.plan.spans import positions_of
from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.seams.sglang import StateType
from tests.radix.simulation import Simulation

SIZE, LONGEST = 300, 120


class Side:
    """Pools of one server, with room for one request in its first row."""

    def __init__(self, head_map: HeadMap, local: int = SIZE) -> None:
        self.pool = HeadClassPool(SIZE, local, head_map, 2, torch.float32, "cpu")
        self.allocator = SWATokenToKVPoolAllocator(SIZE, local, 1, torch.float32, "cpu", self.pool, need_sort=False)
        self.rows = ReqToTokenPool(2, LONGEST + 100, "cpu", enable_memory_saver=False)

    def take(self, length: int) -> Any:
        """A request whose slots are those of a decode server; None if there are too few."""
        req = SimpleNamespace(kv=None, req_pool_idx=1, swa_evict_floor=0, cache_protected_len=0)
        slots = allocate(self.allocator, req, length)
        if slots is None:
            return None
        self.rows.req_to_token[1, :length] = slots.to(torch.int32)
        return req

    def local_of(self, length: int) -> list[int]:
        """Local slots by position, 0 for none."""
        return self.allocator.full_to_swa_index_mapping[self.rows.req_to_token[1, :length].long()].tolist()

    def free(self) -> tuple[int, int]:
        return self.allocator.full_available_size(), self.allocator.swa_available_size()


def one_of_two(window: int, sink: int) -> HeadMap:
    return HeadMap(1, 2, ((True, False),), window=window, sink=sink)


@given(length=st.integers(1, LONGEST), window=st.integers(1, 30), sink=st.integers(0, 9))
def test_a_decode_server_takes_local_slots_where_the_answer_needs_them(length: int, window: int, sink: int) -> None:
    side = Side(one_of_two(window, sink))
    req = side.take(length)
    needed = needed_local(length, side.pool.whole_map)
    kept = positions_of(needed).tolist()
    assert [at for at, slot in enumerate(side.local_of(length)) if slot] == kept
    assert side.free() == (SIZE - length, SIZE - size_of(needed))
    assert local_slots(side.allocator, side.rows, req, length).tolist() == [side.local_of(length)[at] for at in kept]
    side.allocator.free(side.rows.req_to_token[1, :length].long())
    assert side.free() == (SIZE, SIZE)


@given(length=st.integers(1, LONGEST), window=st.integers(1, 30), sink=st.integers(0, 9), steps=st.integers(1, 90))
def test_decoding_frees_what_leaves_the_window_and_keeps_the_sinks(
    length: int, window: int, sink: int, steps: int
) -> None:
    """The frontier that SGLang frees from begins where the tail does, not at 0: what is freed twice belongs to somebody else."""
    side = Side(one_of_two(window, sink))
    req = side.take(length)
    for now in range(length, length + steps):
        side.rows.req_to_token[1, now] = side.allocator.alloc(1)[0].to(torch.int32)
        req.kv.kv_allocated_len = now + 1
        free_swa_out_of_window_slots(
            req,
            now + 1,
            sliding_window_size=window,
            page_size=1,
            req_to_token_pool=side.rows,
            token_to_kv_pool_allocator=side.allocator,
            is_chunk_cache=True,
        )
        seen = [at for at in range(now + 1) if at < sink or now - at < window]
        held = [at for at, slot in enumerate(side.local_of(now + 1)) if slot]
        assert held == seen and len(held) <= most_local(now + 1, side.pool.whole_map)
        assert side.free() == (SIZE - now - 1, SIZE - len(held))


@pytest.mark.parametrize(("length", "local"), [(SIZE + 1, SIZE), (100, 20)])
def test_nothing_is_taken_where_one_class_has_too_few(length: int, local: int) -> None:
    side = Side(one_of_two(window=20, sink=4), local)
    assert side.take(length) is None
    assert side.free() == (SIZE, local)


@pytest.mark.parametrize("prompt", [1, 7, 30, 100])
@pytest.mark.parametrize("chunk", [5, 200])
def test_both_sides_mean_the_same_positions(prompt: int, chunk: int) -> None:
    """A prompt that a prefill server has cached, in chunks, and the slots that a decode server has taken for it."""
    window, sink = 16, 4
    prefill = Simulation(200, 120, window, sink)
    req = prefill.admit(range(prompt))
    while req.computed < prompt:
        prefill.prefill(req, min(chunk, prompt - req.computed))
    sent = local_slots(prefill.allocator, prefill.rows, req, prompt)
    decode = Side(prefill.pool.whole_map)
    asked = local_slots(decode.allocator, decode.rows, decode.take(prompt), prompt)
    kept = positions_of(needed_local(prompt, prefill.pool.whole_map)).tolist()
    row = prefill.rows.req_to_token[req.req_pool_idx, :prompt].long()
    assert len(sent) == len(asked) == len(kept)
    assert sent.tolist() == prefill.pool.translate_loc_from_full_to_swa(row)[kept].tolist()


def test_a_position_without_local_kv_is_an_error_and_not_the_dummy_slot() -> None:
    side = Side(one_of_two(window=16, sink=4))
    req = side.take(100)
    side.allocator.free_swa(side.rows.req_to_token[1, 90:91].long())
    with pytest.raises(RuntimeError, match="1 of 19 positions that the answer needs have no local KV"):
        local_slots(side.allocator, side.rows, req, 100)


def test_without_local_heads_only_global_slots_travel() -> None:
    side = Side(HeadMap(1, 2, ((True, True),), window=8, sink=2))
    req = side.take(50)
    assert side.free() == (SIZE - 50, SIZE - 50) and req.kv.swa_evicted_seqlen == 0
    assert local_slots(side.allocator, side.rows, req, 50).tolist() == []
    assert side.pool.get_state_buf_infos() == ([], [], [])


def test_slots_stand_where_sglang_has_those_of_sliding_windows() -> None:
    local = np.arange(3, dtype=np.int32)
    assert by_state([StateType.MAMBA, StateType.SWA], local) == [None, local]


def test_buffers_are_those_of_layers_with_heads_of_the_class() -> None:
    head_map = HeadMap(3, 2, ((True, False), (False, False), (True, True)), window=8, sink=1)
    pool = HeadClassPool(10, 6, head_map, 2, torch.float32, "cpu")
    for found, buffers, slots in (
        (pool.get_contiguous_buf_infos(), pool.full_kv_pool, 11),
        (pool.get_state_buf_infos(), pool.swa_kv_pool, 7),
    ):
        kept = [buffer for buffer in (*buffers.k, *buffers.v) if buffer.shape[1]]
        pointers, sizes, items = found
        assert pointers == [buffer.data_ptr() for buffer in kept] and len(kept) == 4
        assert items == [buffer.shape[1] * 2 * 4 for buffer in kept]
        assert sizes == [slots * item for item in items]


def test_a_retracted_request_comes_back_with_what_its_window_needs() -> None:
    head_map = one_of_two(window=8, sink=2)
    side = Side(head_map)
    req = side.take(40)
    for buffer in (
        *side.pool.full_kv_pool.k,
        *side.pool.full_kv_pool.v,
        *side.pool.swa_kv_pool.k,
        *side.pool.swa_kv_pool.v,
    ):
        buffer.normal_()
    before = side.rows.req_to_token[1, :40].clone()
    local = torch.tensor(side.local_of(40))
    kept = side.allocator.get_cpu_copy(before)
    values = [side.pool.full_kv_pool.k[0][before.long()].clone(), side.pool.swa_kv_pool.v[0][local].clone()]
    side.allocator.free(before.long())
    for buffer in (*side.pool.full_kv_pool.k, *side.pool.swa_kv_pool.v):
        buffer.zero_()
    req.kv = None
    # Others have taken slots meanwhile.
    side.allocator.alloc(17)
    req = side.take(40)
    after = side.rows.req_to_token[1, :40]
    assert after.tolist() != before.tolist()
    side.allocator.load_cpu_copy(kept, after)
    found = torch.tensor(side.local_of(40))
    needed = positions_of(needed_local(40, head_map))
    assert torch.equal(side.pool.full_kv_pool.k[0][after.long()], values[0])
    assert torch.equal(side.pool.swa_kv_pool.v[0][found][needed], values[1][needed])


def test_a_retracted_request_cannot_come_back_to_kv_that_was_not_kept() -> None:
    side = Side(one_of_two(window=8, sink=2))
    side.take(40)
    row = side.rows.req_to_token[1, :40].long()
    kept = side.allocator.get_cpu_copy(row)
    free = row[10:11]
    side.allocator.full_to_swa_index_mapping[free] = side.allocator.swa_attn_allocator.alloc(1)
    with pytest.raises(RuntimeError, match="whose KV was not kept"):
        side.allocator.load_cpu_copy(kept, row)
