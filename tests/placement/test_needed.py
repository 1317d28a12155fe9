# SPDX-License-Identifier: Apache-2.0
"""What of a prompt's KV travels, and what that is of what all heads full would be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.heads import HeadMap
from redknot_sglang.placement.needed import most_local, needed_local, size_of, tail_start, wire_bytes
from redknot_sglang.plan.spans import positions_of
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import DECODE_FREE_INTERVAL

# Qwen3-8B with one of eight KV heads global in each layer, W 256, S 4.
LAYERS, HEADS, DIM, BYTES = 36, 8, 128, 2
QWEN = HeadMap(LAYERS, HEADS, ((True,) + (False,) * 7,) * LAYERS, window=256, sink=4)
ALL_GLOBAL = HeadMap(1, 2, ((True, True),), window=8, sink=2)


@given(length=st.integers(1, 60), window=st.integers(1, 20), sink=st.integers(0, 9))
def test_it_is_what_the_row_behind_the_prompt_sees(length: int, window: int, sink: int) -> None:
    head_map = HeadMap(1, 2, ((True, False),), window=window, sink=sink)
    seen = {at for at in range(length) if at < sink or length - at < window}
    found = needed_local(length, head_map)
    assert set(positions_of(found).tolist()) == seen
    assert size_of(found) == len(seen)
    start = tail_start(length, head_map)
    assert {at for at in seen if at >= sink} == set(range(max(start, sink), length))
    assert len(seen) <= most_local(length, head_map)


def test_of_a_map_without_local_heads_nothing_is_left_out() -> None:
    assert needed_local(100, ALL_GLOBAL) == [(0, 100)] and tail_start(100, ALL_GLOBAL) == 0
    assert most_local(100, ALL_GLOBAL) == 100


def test_an_answer_holds_the_sink_and_a_window_however_long_it_is() -> None:
    assert most_local(10, QWEN) == 10
    assert most_local(1 << 60, QWEN) == 4 + 256 + DECODE_FREE_INTERVAL


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_bytes_at_32k_are_at_most_14_percent_of_all_heads_full(ranks: int) -> None:
    cost = Ranks(QWEN, 4, ranks).together(DIM, BYTES)
    per_head = 2 * DIM * BYTES * LAYERS
    by_class = wire_bytes(32768, QWEN, cost)
    assert by_class == (32768 * per_head, (255 + 4) * 7 * per_head)
    assert sum(by_class) <= 0.14 * 32768 * 8 * per_head
    assert sum(wire_bytes(32768, ALL_GLOBAL, Ranks(ALL_GLOBAL, 4, 1).together(DIM, BYTES))) == 32768 * 4 * DIM * BYTES
