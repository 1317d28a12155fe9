# SPDX-License-Identifier: Apache-2.0
"""Dealing KV heads out over tensor-parallel ranks: every head once, as many global heads on each rank, and the same
model.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads import HeadMap
from redknot_sglang.heads.dealing import checkpoint_order, deal, fewest_global, most_global, reordered
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import class_bytes


@st.composite
def cases(draw: st.DrawFn) -> tuple[HeadMap, int, int]:
    """A head map, with retrieval heads of some global heads; query heads for each KV head; a number of ranks."""
    layers, count = draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 4, 6, 8]))
    group = draw(st.sampled_from([1, 2, 4]))
    row = st.lists(st.booleans(), min_size=count, max_size=count).map(tuple)
    heads = HeadMap(layers, count, tuple(draw(st.lists(row, min_size=layers, max_size=layers))), window=8, sink=1)
    queries = [
        (layer, head * group + member)
        for layer in range(layers)
        for head in heads.global_heads(layer)
        for member in range(group)
    ]
    retrieval = draw(st.lists(st.sampled_from(queries), unique=True, max_size=6)) if queries else []
    ranks = [ranks for ranks in range(1, count + 1) if count % ranks == 0]
    ranks += [count * copies for copies in (2, 4) if group % copies == 0]
    return replace(heads, retrieval=tuple(retrieval)), group, draw(st.sampled_from(ranks))


@given(cases())
def test_every_head_is_dealt_once_and_ranks_differ_by_one_global_head_at_most(case: tuple[HeadMap, int, int]) -> None:
    heads, group, ranks = case
    order = deal(heads, ranks, group)
    assert [sorted(layer) for layer in order] == [list(range(heads.num_kv_heads))] * heads.num_layers
    dealt = reordered(heads, order, group)
    shares = [Ranks(dealt, group, ranks).share(rank) for rank in range(ranks)]
    counts = [sum(map(sum, share.is_global)) for share in shares]
    total = sum(map(sum, heads.is_global))
    # The checkpoint's order stays where no other has fewer on its fullest rank, though another may be more even.
    assert (
        max(counts)
        == most_global(dealt, ranks)
        == fewest_global(heads, ranks)
        == -(-total // min(ranks, heads.num_kv_heads))
    )
    if order != checkpoint_order(heads):
        assert max(counts) - min(counts) <= 1
        assert most_global(heads, ranks) > max(counts)
    # Bytes of the fullest rank: those of a rank with a like part of everything, and less than one head more.
    head = 2 * 64 * 2
    whole, widest = class_bytes(heads, 64, 2), max(class_bytes(share, 64, 2).global_slot for share in shares)
    assert widest * min(ranks, heads.num_kv_heads) < whole.global_slot + head * min(ranks, heads.num_kv_heads)


@given(cases())
def test_a_head_keeps_its_class_and_its_query_heads_wherever_it_goes(case: tuple[HeadMap, int, int]) -> None:
    heads, group, ranks = case
    order = deal(heads, ranks, group)
    dealt = reordered(heads, order, group)
    for layer, row in enumerate(order):
        assert [heads.is_global[layer][head] for head in row] == list(dealt.is_global[layer])
    back = [(layer, order[layer][head // group] * group + head % group) for layer, head in dealt.retrieval]
    assert back == list(heads.retrieval)
    assert replace(dealt, is_global=heads.is_global, retrieval=heads.retrieval) == heads


@given(cases())
def test_a_head_that_has_room_at_home_stays(case: tuple[HeadMap, int, int]) -> None:
    """Dealing again changes nothing, and neither does dealing what is even already."""
    heads, group, ranks = case
    dealt = reordered(heads, deal(heads, ranks, group), group)
    assert deal(dealt, ranks, group) == checkpoint_order(dealt)


def test_retrieval_heads_are_spread_before_other_global_heads() -> None:
    rows = tuple((True, True, True, False, False, False, False, False) for _ in range(4))
    heads = HeadMap(4, 8, rows, window=8, sink=1, retrieval=tuple((layer, 0) for layer in range(4)))
    dealt = reordered(heads, deal(heads, 2, 1), 1)
    assert [len(Ranks(dealt, 1, 2).share(rank).retrieval) for rank in range(2)] == [2, 2]


def test_heads_that_cannot_be_spread_are_refused() -> None:
    heads = HeadMap(1, 4, ((True, False, False, False),), window=8, sink=1)
    with pytest.raises(HeadMapError, match="cannot be spread over tp_size 3"):
        deal(heads, 3, 1)
