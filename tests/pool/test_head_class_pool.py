# SPDX-License-Identifier: Apache-2.0
"""The pool stores each head's K and V in its class's buffer, on every tensor-parallel rank its own heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.class_heads import ClassHeads, Split
from redknot_sglang.kernels.move_heads import split_heads
from redknot_sglang.pool.head_class_pool import HeadClassPool

MAP = HeadMap(3, 4, ((True, False, True, False), (False,) * 4, (True,) * 4), window=8, sink=1)
DIM = 2


def make_pool(
    head_map: HeadMap, rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float32, probe_width: int = 0
) -> HeadClassPool:
    pool = HeadClassPool(10, 6, head_map, DIM, dtype, "cpu", probe_width, 2, rank, ranks, model_dtype=torch.float32)
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


def test_kv_of_8_bits_takes_a_quarter_of_float32_and_probes_what_they_took() -> None:
    heads = replace(MAP, retrieval=((0, 1),))
    narrow, wide = (make_pool(heads, dtype=dtype, probe_width=4) for dtype in (torch.float8_e4m3fn, torch.float32))
    assert wide.bytes_per_slot.stock == 4 * narrow.bytes_per_slot.stock
    assert narrow.bytes_per_slot.probe == wide.bytes_per_slot.probe
    for pool in (narrow, wide):
        assert pool.probes is not None and pool.asked is not None
        assert pool.probes.asked.dtype == pool.asked.rows.dtype == torch.float32


def test_kv_of_8_bits_moves_to_the_host_and_back() -> None:
    pool = make_pool(MAP, dtype=torch.float8_e4m3fn)
    k = (torch.arange(3 * 4 * DIM) % 13).float().view(3, 4, DIM) / 2
    for layer in range(3):
        written(pool, layer, k)
    kept = pool.get_cpu_copy(torch.tensor([2, 3, 5]))
    pool.register_mapping(torch.tensor([0, 0, 0, 0, 4, 5, 0, 0, 0, 0, 0, -1]))
    pool.load_cpu_copy(kept, torch.tensor([4, 5, 6]))
    assert torch.equal(pool.global_kv(2)[0][[4, 5, 6]].float(), k)
    assert torch.equal(pool.local_kv(1)[1][[4, 5]].float(), -k[:2])


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_bytes_are_those_of_the_buffers_of_all_ranks(ranks: int) -> None:
    pools = [make_pool(MAP, rank, ranks) for rank in range(ranks)]
    per_slot = pools[-1].bytes_per_slot
    held = sum(sum(pool.get_kv_size_bytes()) for pool in pools)
    assert held == 11 * per_slot.global_slot + 7 * per_slot.local_slot


def test_every_rank_keeps_queries_where_some_rank_has_retrieval_heads() -> None:
    """All take part in a choice, those that add nothing to it as well."""
    retrieval = replace(MAP, retrieval=((0, 1), (2, 2)))
    for rank, kept in enumerate((2, 0)):
        asked = make_pool(retrieval, rank, 2).asked
        assert asked is not None and asked.rows.shape == (7, kept, DIM)
    assert make_pool(MAP, 0, 2).asked is None


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_ranks_together_hold_what_one_rank_holds(ranks: int) -> None:
    """Eight ranks over four KV heads: every head lives on two of them."""
    k = torch.randn(3, 4, DIM)
    for layer in range(3):
        for rank in range(ranks):
            pool = make_pool(MAP, rank, ranks)
            own = [rank * 4 // ranks + i for i in range(pool.head_map.num_kv_heads)]
            written(pool, layer, k[:, own])
            stored = [head for head in own if MAP.is_global[layer][head]]
            assert torch.equal(pool.global_kv(layer)[0][[2, 3, 5]], k[:, stored])


def test_whole_token_buffers_do_not_exist() -> None:
    with pytest.raises(TypeError, match="per head class"):
        make_pool(MAP).get_key_buffer(0)


class Region(TorchDispatchMode):
    """Stands for SGLang's adapter of torch_memory_saver; knows all tensors that were made in its regions."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[torch.Tensor] = []
        self.tags: set[str] = set()

    def region(self, tag: str) -> Region:
        self.tags.add(tag)
        return self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.made.append(result)
        return result


def test_what_slots_hold_and_no_more_lies_in_memory_that_can_be_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost with it is made 0 again by `clear`, and nothing else may be lost."""
    from sglang.srt.utils.torch_memory_saver_adapter import TorchMemorySaverAdapter

    regions, asked_for = Region(), list[bool]()
    monkeypatch.setattr(
        TorchMemorySaverAdapter,
        "create",
        lambda enable: asked_for.append(enable) or regions,  # type: ignore[func-returns-value]
    )
    head_map = replace(MAP, retrieval=((2, 1), (2, 3)))
    pool = HeadClassPool(10, 6, head_map, DIM, torch.float32, "cpu", 4, group=2, enable_memory_saver=True)
    assert pool.probes is not None and pool.asked is not None
    buffers = [
        *pool.full_kv_pool.k,
        *pool.full_kv_pool.v,
        *pool.swa_kv_pool.k,
        *pool.swa_kv_pool.v,
        pool.probes.asked,
        pool.probes.got,
        pool.asked.rows,
    ]
    assert asked_for == [True] and regions.tags == {"kv_cache"}
    inside = {tensor.data_ptr() for tensor in regions.made if tensor.numel()}
    assert inside == {buffer.data_ptr() for buffer in buffers if buffer.numel()}
    kept = [tensor for pair in pool.asked._columns.values() for tensor in pair]
    assert kept and not inside & {tensor.data_ptr() for tensor in kept}
    for buffer in buffers:
        buffer.fill_(1)
    pool.clear()
    assert not any(bool(buffer.any()) for buffer in buffers)
