# SPDX-License-Identifier: Apache-2.0
"""The pool stores each head's K and V in its class's buffer, on every tensor-parallel rank its own heads."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.class_heads import ClassHeads, Split
from redknot_sglang.kernels.move_heads import split_heads
from redknot_sglang.pool.head_class_pool import HeadClassPool

MAP = HeadMap(3, 4, ((True, False, True, False), (False,) * 4, (True,) * 4), window=8, sink=1)
DIM = 2


def make_pool(head_map: HeadMap) -> HeadClassPool:
    pool = HeadClassPool(10, 6, head_map, DIM, torch.float32, "cpu")
    pool.register_mapping(torch.tensor([0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, -1]))
    return pool


def written(pool: HeadClassPool, layer: int, k: torch.Tensor) -> None:
    slots = torch.tensor([2, 3, 5])
    local_slots = pool.translate_loc_from_full_to_swa(slots)
    classes = pool.head_map.global_heads(layer), pool.head_map.local_heads(layer)
    split = Split.of(*(ClassHeads.of(heads, 1, torch.device("cpu")) for heads in classes))
    split_heads(split, k, k, -k, slots, local_slots, pool.global_kv(layer), pool.local_kv(layer))


def test_heads_go_to_their_class_and_widths_differ_by_layer() -> None:
    pool = make_pool(MAP)
    k = torch.arange(3 * 4 * DIM, dtype=torch.float32).view(3, 4, DIM) + 1
    for layer, (n_global, n_local) in enumerate(((2, 2), (0, 4), (4, 0))):
        written(pool, layer, k)
        assert pool.global_kv(layer)[0].shape == (11, n_global, DIM)
        assert pool.local_kv(layer)[1].shape == (7, n_local, DIM)
    assert torch.equal(pool.global_kv(0)[0][[2, 3, 5]], k[:, [0, 2]])
    assert torch.equal(pool.local_kv(0)[1][[3, 1]], -k[:2, [1, 3]])
    assert torch.equal(pool.local_kv(1)[0][[3, 1]], k[:2])


def test_a_token_without_local_slot_writes_to_the_dummy_only() -> None:
    pool = make_pool(MAP)
    written(pool, 1, torch.ones(3, 4, DIM))
    touched = pool.local_kv(1)[0].abs().sum((1, 2)).nonzero().flatten().tolist()
    assert touched == [0, 1, 3]


def test_bytes_are_those_of_the_buffers() -> None:
    pool = make_pool(MAP)
    per_slot = pool.bytes_per_slot
    assert sum(pool.get_kv_size_bytes()) == 11 * per_slot.global_slot + 7 * per_slot.local_slot


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_ranks_together_hold_what_one_rank_holds(ranks: int) -> None:
    """Eight ranks over four KV heads: every head lives on two of them."""
    k = torch.randn(3, 4, DIM)
    for layer in range(3):
        for rank in range(ranks):
            shard = MAP.shard(rank, ranks)
            own = [rank * 4 // ranks + i for i in range(shard.num_kv_heads)]
            pool = make_pool(shard)
            written(pool, layer, k[:, own])
            stored = [head for head in own if MAP.is_global[layer][head]]
            assert torch.equal(pool.global_kv(layer)[0][[2, 3, 5]], k[:, stored])


def test_whole_token_buffers_do_not_exist() -> None:
    with pytest.raises(TypeError, match="per head class"):
        make_pool(MAP).get_key_buffer(0)
