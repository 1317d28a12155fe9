# SPDX-License-Identifier: Apache-2.0
"""The split of a byte budget between the head classes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.sizing import ClassBytes, class_bytes, local_for_global, local_slots_per_sequence, split_budget


def make_map(num_global: int, window: int = 256, sink: int = 4) -> HeadMap:
    return HeadMap(36, 8, tuple(tuple(head < num_global for head in range(8)) for _ in range(36)), window, sink)


def test_bytes_per_slot_of_qwen3_8b_with_one_head_in_eight_global() -> None:
    cost = class_bytes(make_map(1), head_dim=128, itemsize=2)
    assert cost == ClassBytes(global_slot=36 * 1 * 512, local_slot=36 * 7 * 512)
    assert cost.global_slot + cost.local_slot == 144 * 1024


@given(
    num_global=st.integers(0, 7),
    window=st.sampled_from((16, 256, 4096)),
    budget=st.integers(2**28, 2**36),
    context=st.sampled_from((512, 4096, 32768)),
    chunk=st.sampled_from((64, 2048, 8192)),
)
def test_the_budget_is_kept_and_both_pools_run_out_together(
    num_global: int, window: int, budget: int, context: int, chunk: int
) -> None:
    head_map = make_map(num_global, window)
    cost = class_bytes(head_map, 128, 2)
    slots = split_budget(head_map, cost, budget, context, chunk)
    assert slots.global_slots * cost.global_slot + slots.local_slots * cost.local_slot <= budget
    per_sequence = min(context, local_slots_per_sequence(head_map))
    in_flight = min(2 * chunk, int(0.25 * budget / cost.local_slot))
    sequences = slots.global_slots / context
    assert abs((slots.local_slots - in_flight) / per_sequence - sequences) <= 1


def test_all_global_takes_the_whole_budget() -> None:
    head_map = make_map(8)
    cost = class_bytes(head_map, 128, 2)
    slots = split_budget(head_map, cost, 10**9, 32768, 8192)
    assert slots.global_slots == slots.local_slots == 10**9 // cost.global_slot


def test_a_given_number_of_global_slots_is_kept() -> None:
    head_map = make_map(1)
    slots = local_for_global(head_map, 100_000, 32768, 2048)
    assert slots.global_slots == 100_000
    assert slots.local_slots == int(100_000 * local_slots_per_sequence(head_map) / 32768) + 2 * 2048
    assert local_for_global(head_map, 1000, 32768, 2048).local_slots == 1000
