# SPDX-License-Identifier: Apache-2.0
"""Host memory per head class: what is copied there and back is the same, and loads keep their place among relocations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.run_copies import RunCopies
from redknot_sglang.kernels.stored import movable
from redknot_sglang.pool import relocation
from redknot_sglang.pool.dealing import Dealing, attach
from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.pool.host import ClassHostPool, host_pools
from redknot_sglang.pool.relocation import ClassMove, Relocation, RelocationQueue
from redknot_sglang.pool.sizing import PoolSlots
from redknot_sglang.pool.start_sizes import StartSizes
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

DIM = 4
# A layer with both classes, one without global heads, one without local ones.
ROWS = ((True, False, False), (False, False, False), (True, True, True))
MAP = HeadMap(3, 3, ROWS, window=8, sink=2, retrieval=((2, 1), (0, 0)))


def make_pool(dtype: torch.dtype = torch.float32) -> HeadClassPool:
    pool = HeadClassPool(20, 12, MAP, DIM, dtype, "cpu", probe_width=1, group=1, model_dtype=torch.float32)
    assert pool.probes is not None and pool.asked is not None
    for buffers in (pool.full_kv_pool, pool.swa_kv_pool):
        for buffer in (*buffers.k, *buffers.v):
            buffer.copy_(torch.randn(buffer.shape))
    for buffer in (pool.probes.asked, pool.probes.got, pool.asked.rows):
        buffer.normal_()
    return pool


def local_buffers(pool: HeadClassPool) -> list[torch.Tensor]:
    """All that has a row for each local slot, 8-bit floats as bytes."""
    assert pool.probes is not None and pool.asked is not None
    buffers = pool.swa_kv_pool
    return [*map(movable, (*buffers.k, *buffers.v)), pool.probes.asked, pool.probes.got, pool.asked.rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_rows_come_back_as_they_went_with_what_probes_and_questions_keep(dtype: torch.dtype) -> None:
    pool = make_pool(dtype)
    global_pool, local_pool = host_pools(pool, PoolSlots(30, 15))
    before = [buffer.clone() for buffer in local_buffers(pool)]
    device, host = torch.tensor([3, 9, 4]), torch.tensor([14, 0, 7])
    local_pool.backup_from_device_all_layer(None, host, device, "kernel")
    for buffer in local_buffers(pool):
        buffer.zero_()
    back = torch.tensor([5, 1, 2])
    for layer in range(3):
        local_pool.load_to_device_per_layer(None, host, back, layer, "kernel")
    for buffer, old in zip(local_buffers(pool), before, strict=True):
        assert torch.equal(buffer[back], old[device])
        assert not buffer[[0, 3, 4, 6]].any()
    assert global_pool.size_per_token == 4 * 2 * DIM * dtype.itemsize
    assert global_pool.size_per_token == pool.bytes_per_slot.global_slot
    assert local_pool.size_per_token == pool.bytes_per_slot.local


def test_a_layer_comes_back_by_itself() -> None:
    pool = make_pool()
    global_pool, _ = host_pools(pool, PoolSlots(30, 15))
    slots = torch.tensor([3, 9])
    global_pool.backup_from_device_all_layer(None, slots, slots, "kernel")
    kept = pool.full_kv_pool.k[2][slots].clone()
    for buffer in pool.full_kv_pool.k:
        buffer.zero_()
    global_pool.load_to_device_per_layer(None, slots, slots, 2, "kernel")
    assert torch.equal(pool.full_kv_pool.k[2][slots], kept) and not pool.full_kv_pool.k[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("kind", [0, 1])
def test_rows_are_packed_and_unpacked_bit_by_bit(kind: int, dtype: torch.dtype) -> None:
    """Into other slots, and some of them only."""
    host = host_pools(make_pool(dtype), PoolSlots(30, 15))[kind]
    host.kv_buffer.random_(0, 256)
    slots = torch.tensor([3, 14, 0, 7])
    data = torch.zeros(4 * host.size_per_token, dtype=torch.uint8)
    host.pack(slots, data)
    bits = [[buffer.view(torch.int32) for buffer in pair.host] for layer in host._layers for pair in layer]
    before = [[buffer.clone() for buffer in pair] for pair in bits]
    target = torch.tensor([5, 1])
    host.unpack(target, data, torch.tensor([True, False, False, True]))
    for pair, old in zip(bits, before, strict=True):
        for buffer, kept in zip(pair, old, strict=True):
            assert torch.equal(buffer[target], kept[[3, 7]])
            others = torch.ones(len(buffer), dtype=torch.bool)
            others[target] = False
            assert torch.equal(buffer[others], kept[others])
    with pytest.raises(TypeError, match="pack"):
        host.get_data_page(0)


def test_the_layout_of_rows_says_what_is_in_them() -> None:
    global_pool, local_pool = host_pools(make_pool(), PoolSlots(30, 15))
    float32 = "torch.float32"
    assert global_pool.row_layout == [[(float32, [1, DIM])] * 2, [], [(float32, [3, DIM])] * 2]
    assert local_pool.row_layout[1] == [(float32, [3, DIM])] * 2 and len(local_pool.row_layout[2]) == 3


def test_slots_are_given_once() -> None:
    pool = ClassHostPool(5, [], RunCopies(torch.device("cpu")))
    taken = pool.alloc(3)
    assert taken is not None and pool.alloc(3) is None
    pool.free(taken)
    assert pool.available_size() == 5


def test_slots_that_were_freed_in_any_order_are_given_in_runs() -> None:
    pool = ClassHostPool(12, [], RunCopies(torch.device("cpu")))
    parts = [pool.alloc(3) for _ in range(4)]
    for part in (parts[2], parts[0], parts[1]):
        pool.free(part.flip(0))
    assert pool.alloc(8).tolist() == list(range(8))
    pool.free(parts[3])
    assert pool.alloc(4).tolist() == [8, 9, 10, 11]


def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(total=2**40, available=11 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    slot = make_pool().bytes_per_slot.global_slot
    with pytest.raises(RedKnotError, match=r"needs 1.1 GiB .* and 1.0 GiB are free; lower --hicache-ratio"):
        host_pools(make_pool(), PoolSlots(int(1.1 * 2**30) // slot, 1))


class Loads:
    """Notes what is begun and waited for."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def begin(self, operations: Sequence[Any]) -> None:
        self._said.append("begin " + " ".join(operations))

    def wait_for_layer(self, layer: int) -> None:
        self._said.append(f"layer {layer}")

    def wait(self) -> None:
        self._said.append("wait")


def test_loads_begin_behind_relocations_that_read_what_they_overwrite(monkeypatch: pytest.MonkeyPatch) -> None:
    """And relocations wait for loads before them; the last loads go on beside the forward."""
    said: list[str] = []
    monkeypatch.setattr(relocation, "relocate", lambda layers, source, *rest: said.append(f"move {source.tolist()}"))
    queue, pool = RelocationQueue(), make_pool()
    queue.loads = Loads(said)
    rotation: Any = SimpleNamespace(turn=lambda origin, position: (None, None), is_neox=True)

    def move(slot: int) -> Relocation:
        rows = torch.tensor([slot])
        return Relocation(ClassMove(rows, rows, rows, rows), ClassMove(rows, rows, rows, rows))

    queue.add(move(1))
    queue.add_load("a")
    queue.add_load("b")
    queue.add(move(2))
    queue.add_load("c")
    assert queue.has_loads
    queue.run(pool, rotation)
    queue.wait_for_layer(0)
    moves = ["move [1]"] * 2, ["move [2]"] * 2
    assert said == ["wait", *moves[0], "begin a b", "wait", *moves[1], "begin c", "layer 0"]
    assert not queue.has_loads
    said.clear()
    # The next forward's jobs come behind all that the last one loaded.
    queue.run(pool, rotation)
    assert said == ["wait"]


def test_loads_of_a_tree_that_was_emptied_are_forgotten() -> None:
    queue = RelocationQueue()
    queue.add_load("a")
    queue.forget_loads()
    queue.run(make_pool(), None)
    assert not queue.has_loads


def sizes_of(heads: HeadMap) -> StartSizes:
    """Sizes of a server without further flags, at 1,000 tokens of context."""
    server_args = SimpleNamespace(
        kv_cache_dtype="auto", chunked_prefill_size=64, disaggregation_mode="null", speculative_algorithm=None
    )
    model_config = SimpleNamespace(head_dim=DIM, dtype=torch.float32, context_len=1000)
    attach(model_config, Dealing.of(heads, 1, 1))
    return StartSizes(server_args, model_config, RedKnotConfig(head_map=Path("map.json"), context_length=1000))


def test_host_slots_follow_the_device_s_by_ratio_or_bytes() -> None:
    sizes = sizes_of(MAP)
    on_device = PoolSlots(5000, 900)
    found = sizes.of_host(SimpleNamespace(hicache_size=0, hicache_ratio=3.0), on_device)
    # As many sequences of 1,000 tokens in both classes, and no room for chunks in flight.
    assert found == PoolSlots(15000, 15 * (2 + 8 + 8 + 32))
    by_bytes = sizes.of_host(SimpleNamespace(hicache_size=1, hicache_ratio=3.0), on_device)
    taken = sizes.bytes_of(by_bytes)
    assert 0.99 * 10**9 < taken <= 10**9
    with pytest.raises(RedKnotError, match="--hicache-ratio 0.001 cannot hold a single request"):
        sizes.of_host(SimpleNamespace(hicache_size=0, hicache_ratio=0.001), on_device)


def test_where_all_heads_are_global_each_token_has_a_host_slot_of_both_classes() -> None:
    sizes = sizes_of(HeadMap(3, 3, ((True,) * 3,) * 3, window=8, sink=2))
    found = sizes.of_host(SimpleNamespace(hicache_size=0, hicache_ratio=2.0), PoolSlots(500, 500))
    assert found == PoolSlots(1000, 1000)
