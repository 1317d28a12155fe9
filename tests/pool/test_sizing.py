# SPDX-License-Identifier: Apache-2.0
"""The split of a byte budget between the head classes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.kv_dtype import check_kv_dtype
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import (
    ClassBytes,
    PoolSlots,
    Segments,
    class_bytes,
    decode_window,
    free_interval,
    holding_a_request,
    least_slots,
    local_for_global,
    local_slots_per_sequence,
    slots_ahead,
    split_budget,
)
from redknot_sglang.pool.start_sizes import draft_tokens, prefill_chunk


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


@given(draft=st.integers(0, 64), accepted=st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_a_sequence_with_drafts_holds_no_more_than_is_budgeted(draft: int, accepted: list[int]) -> None:
    """Each step has slots for two drafts behind the text, and every few steps what left the window goes."""
    head_map, length, freed, most = make_map(1, window=16), 0, 0, 0
    for step, tokens in enumerate(accepted):
        if step % free_interval(draft) == 0:
            freed = max(freed, length - head_map.window)
        most = max(most, length + slots_ahead(draft) - freed)
        length += min(tokens, max(1, draft))
    assert most <= decode_window(head_map, draft)


@pytest.mark.parametrize("all_global", [False, True])
def test_pools_hold_a_request_with_its_drafts(all_global: bool) -> None:
    head_map = make_map(8 if all_global else 1)
    more = least_slots(head_map, 12) - least_slots(head_map)
    assert more == slots_ahead(12) == 24
    slots = PoolSlots(*2 * [least_slots(head_map)])
    holding_a_request(head_map, slots)
    with pytest.raises(RedKnotError, match=f"one request needs {least_slots(head_map, 12)}"):
        holding_a_request(head_map, slots, 12)


def test_drafts_make_the_local_pool_larger() -> None:
    plain, drafting = (local_for_global(make_map(1), 100_000, 4096, 512, draft=draft) for draft in (0, 8))
    assert plain.local_slots < drafting.local_slots


def test_tokens_of_a_draft() -> None:
    none = SimpleNamespace(speculative_algorithm=None, speculative_num_draft_tokens=None, speculative_num_steps=None)
    assert draft_tokens(none) == 0
    ngram = SimpleNamespace(speculative_algorithm="NGRAM", speculative_num_draft_tokens=4, speculative_num_steps=9)
    assert draft_tokens(ngram) == 9


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


@given(
    num_global=st.integers(0, 7),
    budget=st.integers(2**28, 2**36),
    context=st.sampled_from((512, 32768)),
    chunk=st.sampled_from((64, 8192)),
    kind=st.sampled_from(((None, False), (2048, False), (100, False), (2048, True))),
    tokens=st.integers(1, 2**19),
)
def test_segments_and_sequences_fit_into_the_budget_or_it_says_how_many_would(
    num_global: int, budget: int, context: int, chunk: int, kind: tuple[int | None, bool], tokens: int
) -> None:
    head_map, (length, whole) = make_map(num_global), kind
    cost = class_bytes(head_map, 128, 2, probe_width=4)

    def split(count: int) -> PoolSlots:
        return split_budget(head_map, cost, budget, context, chunk, Segments(length, whole, count))

    try:
        slots = split(tokens)
    except RedKnotError as error:
        fit = int(str(error).split(", ")[1].split()[0])
        with pytest.raises(RedKnotError, match="lower it or raise --redknot-kv-budget"):
            split(fit + 1)
        if fit:
            split(fit)
        return
    assert slots.global_slots * cost.global_slot + slots.local_slots * cost.local <= budget
    ratio = min(1.0, local_slots_per_sequence(head_map) / context)
    tails = min(tokens, 260 * -(-tokens // length)) if length else ratio * tokens
    own = slots.local_slots - (tokens if whole else tails)
    in_flight = min(2 * chunk, int(0.25 * budget / cost.local))
    assert slots.global_slots - tokens >= least_slots(head_map) and own > least_slots(head_map) - 1
    assert abs(own - in_flight - ratio * (slots.global_slots - tokens)) <= 2


def test_known_segments_leave_qwen3_8b_almost_three_times_the_tokens() -> None:
    cost = class_bytes(make_map(1), 128, 2, probe_width=4)
    assert (cost.local, cost.global_slot) == (131072, 18432)
    unknown, known = (
        split_budget(make_map(1), cost, int(38.9e9), 34064, 8192, Segments(whole=True, tokens=tokens))
        for tokens in (None, 65536)
    )
    assert 430_000 < unknown.global_slots < 440_000 and known.global_slots > 1_200_000


def test_segments_beside_a_given_number_of_global_slots() -> None:
    def local(slots: int, tokens: int | None) -> int:
        return local_for_global(make_map(1), slots, 32768, 2048, Segments(whole=True, tokens=tokens)).local_slots

    assert local(100_000, None) == 50_000 + 4096
    assert local(100_000, 20_000) == 20_000 + int(80_000 * 548 / 32768) + 4096
    assert local(20_556, 20_000) == 20_556
    with pytest.raises(RedKnotError, match="--redknot-segment-tokens 20000 leave no room for a request, 19443 would"):
        local(19_999, 20_000)


@pytest.mark.parametrize("budget", [2**22, 2**26, 2**30, 2**34])
@pytest.mark.parametrize("retrieval", [(), ((3, 1), (5, 0))])
def test_a_rank_whose_heads_are_all_global_sizes_those_that_have_local_ones(
    budget: int, retrieval: tuple[tuple[int, int], ...]
) -> None:
    """Eight ranks, one KV head each: the first has all global heads, the others all local ones."""
    spread = Ranks(replace(make_map(1), retrieval=retrieval), 4, 8)
    ranks = [class_bytes(spread.share(rank), 128, 2) for rank in range(8)]
    cost = spread.widest(128, 2)
    assert cost == ranks[0] and cost.local_slot == 0 and ranks[1].global_slot == 0
    slots = split_budget(spread.heads, cost, budget, 32768, 8192)
    for rank in ranks:
        assert slots.global_slots * rank.global_slot + slots.local_slots * rank.local <= budget


def test_slots_that_hold_no_request_are_refused() -> None:
    head_map = make_map(1)
    least = least_slots(head_map)
    assert holding_a_request(head_map, PoolSlots(least, least)) == PoolSlots(least, least)
    for slots in (PoolSlots(least - 1, least), PoolSlots(least, least - 1), PoolSlots(0, 0)):
        with pytest.raises(RedKnotError, match=f"one request needs {least}; raise --redknot-kv-budget"):
            holding_a_request(head_map, slots)


def test_a_decode_server_has_no_chunks_in_flight() -> None:
    for mode, chunked, expected in (("null", 64, 64), ("null", -1, 500), ("prefill", 64, 64), ("decode", 64, 0)):
        args = SimpleNamespace(disaggregation_mode=mode, chunked_prefill_size=chunked)
        assert prefill_chunk(args, 500) == expected


def test_kv_of_8_bits_that_only_the_checkpoint_asks_for_is_to_be_said() -> None:
    """ModelOpt's checkpoints do; a certificate measured with 16 bits would be taken for it."""
    with pytest.raises(RedKnotError, match="add --kv-cache-dtype fp8_e4m3"):
        check_kv_dtype("auto", torch.float8_e4m3fn)
    check_kv_dtype("auto", torch.bfloat16)
    check_kv_dtype("fp8_e4m3", torch.float8_e4m3fn)
