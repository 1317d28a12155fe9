# SPDX-License-Identifier: Apache-2.0
"""What tensor-parallel ranks hold: every query head on one of them, KV heads on as many as need them, and bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.asked import check_retrieval
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import class_bytes

GROUP = 4
# Retrieval heads of the global KV heads 0 and 3, all query heads of these in one layer or another.
RETRIEVAL = ((0, 1), (2, 15), (2, 0), (0, 12), (1, 14), (1, 2), (0, 3), (2, 13))
MAP = HeadMap(3, 4, ((True, False, False, True),) * 3, window=8, sink=1, retrieval=RETRIEVAL)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_every_retrieval_head_is_on_one_rank_under_its_own_kv_head(count: int) -> None:
    """Sixteen ranks over four KV heads: each has one query head, and a copy of its KV head."""
    ranks, found = Ranks(MAP, GROUP, count), list[tuple[int, int]]()
    width = 16 // count
    for rank in range(count):
        share = ranks.share(rank)
        assert share.num_kv_heads * ranks.group_of_rank == width
        check_retrieval(share, ranks.group_of_rank)
        found += [(layer, head + rank * width) for layer, head in share.retrieval]
        for layer, head in share.retrieval:
            assert (head + rank * width) // GROUP == rank * 4 // count + head // ranks.group_of_rank, layer
    assert sorted(found) == sorted(RETRIEVAL)


def test_query_heads_that_cannot_be_spread_are_refused() -> None:
    assert Ranks(MAP, 3, 12).group_of_rank == 1
    with pytest.raises(
        RedKnotError, match="12 query heads cannot be spread over --tp-size 8: choose a size that divides"
    ):
        Ranks(MAP, 3, 8).share(0)


def test_the_widest_rank_is_not_always_the_first() -> None:
    rows = tuple((False, False, True, True) for _ in range(3))
    head_map = HeadMap(3, 4, rows, window=8, sink=1)
    assert Ranks(head_map, 1, 2).widest(64, 2) == class_bytes(head_map.shard(1, 2), 64, 2)
    assert Ranks(head_map, 1, 1).widest(64, 2, probe_width=3) == class_bytes(head_map, 64, 2, probe_width=3)
    # KV of 8 bits, and what probes keep in 16.
    narrow = Ranks(head_map, 1, 1).widest(64, 1, 3, 2)
    assert narrow == replace(class_bytes(head_map, 64, 1), probe=3 * 2 * 64 * 2)


def test_the_rank_with_most_retrieval_heads_limits_all() -> None:
    """Both ranks have as many global heads, so either is the widest."""
    heads = replace(MAP, retrieval=((0, 12), (0, 13), (1, 0)))
    cost = Ranks(heads, GROUP, 2).widest(64, 2)
    assert cost == replace(class_bytes(heads.shard(0, 2), 64, 2), probe=2 * 64 * 2)


@pytest.mark.parametrize(("count", "copies"), [(1, 1), (2, 1), (4, 1), (8, 2), (16, 4)])
def test_bytes_of_all_ranks_count_copies_of_kv_heads_and_queries_once(count: int, copies: int) -> None:
    one, all_ranks = class_bytes(MAP, 64, 2), Ranks(MAP, GROUP, count).together(64, 2)
    assert (all_ranks.global_slot, all_ranks.local_slot) == (copies * one.global_slot, copies * one.local_slot)
    assert all_ranks.probe == one.probe == len(RETRIEVAL) * 64 * 2
