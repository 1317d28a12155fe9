# SPDX-License-Identifier: Apache-2.0
"""KV buffers per head class.

Per layer l the pool holds K and V of the global heads `[slots_g + 1, n_g(l), D]` and of the local heads
`[slots_l + 1, n_l(l), D]`; slot 0 is the dummy that padded rows write to. A slot is one row of every layer's buffer of
its class, so widths may differ between layers and nothing is wasted. A token has a global slot and, while it is a sink
or inside a window, a local slot: `local = full_to_swa_index_mapping[global]` (0: none).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.heads import HeadMap
from redknot_sglang.heads.dealing import checkpoint_order
from redknot_sglang.kernels.stored import movable
from redknot_sglang.pool.asked import AskedQueries
from redknot_sglang.pool.dealing import Dealing
from redknot_sglang.pool.probe import ProbeBuffers
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.relocation import RelocationQueue
from redknot_sglang.seams.sglang import GPU_MEMORY_TYPE_KV_CACHE, KVCache, SWAKVPool

logger = logging.getLogger(__name__)


class ClassBuffers:
    """K and V of one head class: `k[layer]` and `v[layer]`, each `[slots + 1, widths[layer], head_dim]`.

    slots: usable slots; slot 0 comes on top.
    widths: heads of this class in each layer.
    head_dim: elements of one head's K or V.
    dtype: of the elements.
    device: where the buffers are.
    """

    def __init__(self, slots: int, widths: list[int], head_dim: int, dtype: torch.dtype, device: str) -> None:
        self.size = slots
        self.widths = widths
        self.k = [torch.zeros(slots + 1, width, head_dim, dtype=dtype, device=device) for width in widths]
        self.v = [torch.zeros(slots + 1, width, head_dim, dtype=dtype, device=device) for width in widths]

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Bytes of all K and of all V buffers."""
        return sum(k.nbytes for k in self.k), sum(v.nbytes for v in self.v)

    def get_contiguous_buf_infos(self) -> tuple[list[int], list[int], list[int]]:
        """What SGLang sends to decode servers: addresses, bytes, and bytes of a slot, of all K and then of all V buffers.

        Layers without heads of this class have no bytes and are left out.
        """
        buffers = [buffer for buffer in (*self.k, *self.v) if buffer.shape[1]]
        return (
            [buffer.data_ptr() for buffer in buffers],
            [buffer.nbytes for buffer in buffers],
            [buffer[0].nbytes for buffer in buffers],
        )

    def clear(self) -> None:
        """Make all K and V 0, as they were at first."""
        for buffer in (*self.k, *self.v):
            buffer.zero_()

    def to_host(self, slots: Tensor) -> list[Tensor]:
        """KV of some slots, of each buffer `[n, width, head_dim]` on the host, 8-bit floats as bytes. slots: int64 [n]."""
        return [movable(buffer)[slots].cpu() for buffer in (*self.k, *self.v)]

    def from_host(self, slots: Tensor, rows: list[Tensor]) -> None:
        """Write what `to_host` has given.

        slots: int64 [n], where to; they need not be those that were read.
        rows: of each buffer `[n, width, head_dim]` on the host.
        """
        for buffer, kept in zip((*self.k, *self.v), rows, strict=True):
            movable(buffer)[slots] = movable(kept).to(buffer.device)


@dataclass(frozen=True, eq=False)
class RequestCopy:
    """A request's KV on the host.

    global_rows: of each global buffer `[n, width, head_dim]`, by position. local_rows: of each local one, of the positions in `kept`.
    kept: bool [n], positions that had a local slot, on the pool's device.
    """

    global_rows: list[Tensor]
    local_rows: list[Tensor]
    kept: Tensor


class HeadClassPool(SWAKVPool):
    """The pool of both head classes, in the place of SGLang's pool for models with sliding-window layers.

    size_global: usable global slots.
    size_local: usable local slots.
    head_map: of the whole model.
    head_dim: elements of one head's K or V.
    dtype: of K and V as they are stored.
    device: where the buffers are.
    probe_width: query heads whose rows are kept for the repair policy `blend` (`probe.py`) on all ranks together, 0
        for none.
    group: query heads for each KV head of the whole model, by which the map's retrieval heads are found.
    rank, ranks: number of this tensor-parallel rank, and how many there are.
    dealing: which heads each rank has, by the same map, group and number of ranks; None for the checkpoint's order.
    enable_memory_saver: whether the buffers lie in memory that SGLang can give back and take again (`/release_memory_occupation`);
        needs the package torch_memory_saver and a GPU.
    draft: tokens of a draft of speculative decoding, 0 without it.
    model_dtype: of queries, and of what is kept for probes and retrieval heads; None for `dtype`.

    `head_map` is this rank's share. What all ranks have to decide alike must not depend on it, but on `whole_map`,
    which is the model's in the checkpoint's order; `bytes_per_slot` is what a slot takes on all ranks together.

    `full_kv_pool` holds the global class and `swa_kv_pool` the local class: SGLang's two-pool allocator knows them by
    these names.
    """

    def __init__(
        self,
        size_global: int,
        size_local: int,
        head_map: HeadMap,
        head_dim: int,
        dtype: torch.dtype,
        device: str,
        probe_width: int = 0,
        group: int = 1,
        rank: int = 0,
        ranks: int = 1,
        dealing: Dealing | None = None,
        enable_memory_saver: bool = False,
        draft: int = 0,
        model_dtype: torch.dtype | None = None,
    ) -> None:
        self.dealing = dealing or Dealing(head_map, group, ranks, checkpoint_order(head_map))
        spread = Ranks(self.dealing.dealt, group, ranks)
        self.whole_map, head_map = head_map, spread.share(rank)
        self.probe_width, self.draft = probe_width, draft
        self.model_dtype = kept = model_dtype or dtype
        # Of each layer the scales of its keys and values: what is stored times this is K or V. The attention backend sets them.
        self.scales = [(1.0, 1.0)] * head_map.num_layers
        KVCache.__init__(
            self,
            size=size_global,
            page_size=1,
            dtype=dtype,
            layer_num=head_map.num_layers,
            device=device,
            enable_memory_saver=enable_memory_saver,
        )
        layers = range(head_map.num_layers)
        self.head_map = head_map
        self.head_num = head_map.num_kv_heads
        self.head_dim = head_dim
        self.size_swa = size_local
        self.full_layer_nums = self.swa_layer_nums = head_map.num_layers
        self.bytes_per_slot = spread.together(head_dim, dtype.itemsize, probe_width, kept.itemsize)
        self.full_to_swa_index_mapping: Tensor | None = None
        self.relocations = RelocationQueue()
        region = partial(self.memory_saver_adapter.region, GPU_MEMORY_TYPE_KV_CACHE)
        self.probes: ProbeBuffers | None = None
        with region():
            self.full_kv_pool = ClassBuffers(
                size_global, [head_map.num_global(layer) for layer in layers], head_dim, dtype, device
            )
            self.swa_kv_pool = ClassBuffers(
                size_local, [head_map.num_local(layer) for layer in layers], head_dim, dtype, device
            )
            if probe_width:
                # On every rank, since all of them take part in a choice; some may have no global heads in the probe layer.
                width = spread.own_probe_width(rank, probe_width)
                self.probes = ProbeBuffers(size_local, width, self.whole_map, head_dim, kept, device)
        self.asked: AskedQueries | None = None
        if self.whole_map.retrieval:
            # On every rank, since all of them take part in a choice; some may have no retrieval heads.
            self.asked = AskedQueries(size_local, head_map, spread.group_of_rank, head_dim, kept, device, region)
        total = sum(self.get_kv_size_bytes())
        self.mem_usage = total / 2**30
        logger.info(
            "Head-class KV pool: %.2f GiB, %d global and %d local slots", self.mem_usage, size_global, size_local
        )

    def clear(self) -> None:
        """Make all buffers 0, as they were at first; no slot may be in use. Memory that was given back and taken again holds anything."""
        for buffers in (self.full_kv_pool, self.swa_kv_pool, self.probes, self.asked):
            if buffers is not None:
                buffers.clear()

    @property
    def post_capture_active(self) -> bool:
        """False, which tells SGLang that the buffers exist from the start, not only after CUDA graphs are captured."""
        return False

    @property
    def buffer_device(self) -> torch.device:
        """The device of the buffers, with its index."""
        return self.full_kv_pool.k[0].device

    def global_kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V of the layer's global heads, each `[slots_g + 1, n_g, D]`."""
        return self.full_kv_pool.k[layer], self.full_kv_pool.v[layer]

    def local_kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V of the layer's local heads, each `[slots_l + 1, n_l, D]`."""
        return self.swa_kv_pool.k[layer], self.swa_kv_pool.v[layer]

    def set_kv_buffer(self, *args: Any, **kwargs: Any) -> None:
        """Not used, raises TypeError: the attention backend stores KV in the same kernel that sorts the heads by class."""
        raise TypeError("KV of this pool is stored per head class, by the attention backend: call kernels.split_heads")

    def register_layer_transfer_counter(self, layer_transfer_counter: Any) -> None:
        """Does nothing: SGLang says here whom to ask which layers have come from the host; our attention asks
        `relocations`.
        """

    def move_kv_cache(self, tgt_loc: Tensor, src_loc: Tensor) -> None:
        """Does nothing. SGLang would move the KV of accepted rows behind the text that they go on from, where a draft is a tree;
        rows of a chain stand there already.

        tgt_loc, src_loc: int64 [n], global slots.
        """

    def get_cpu_copy(self, indices: Tensor, mamba_indices: Any = None) -> RequestCopy:
        """KV of a request that a decode server retracts, for `load_cpu_copy`.

        indices: int32 or int64 [n], its global slots by position. mamba_indices: None, always.
        """
        indices = indices.long()
        local = self.translate_loc_from_full_to_swa(indices)
        kept = local > 0
        return RequestCopy(self.full_kv_pool.to_host(indices), self.swa_kv_pool.to_host(local[kept]), kept)

    def load_cpu_copy(self, kv_cache_cpu: RequestCopy, indices: Tensor, mamba_indices: Any = None) -> None:
        """Write a request's KV into new slots. Of its local rows those come back whose positions have a local slot now.

        kv_cache_cpu: what `get_cpu_copy` gave. indices: int32 or int64 [n], the request's new global slots.
        Raises RuntimeError if a position has a local slot now and had none then.
        """
        indices = indices.long()
        local = self.translate_loc_from_full_to_swa(indices)
        wanted = local > 0
        if bool((wanted & ~kv_cache_cpu.kept).any()):
            raise RuntimeError("a retracted request comes back with local slots whose KV was not kept")
        self.full_kv_pool.from_host(indices, kv_cache_cpu.global_rows)
        rows = wanted[kv_cache_cpu.kept].cpu()
        self.swa_kv_pool.from_host(local[wanted], [kept[rows] for kept in kv_cache_cpu.local_rows])

    def get_key_buffer(self, layer_id: int) -> Tensor:
        """Not used, raises TypeError: there is no buffer of all heads; callers need one class at a time."""
        raise TypeError("KV is kept per head class: use global_kv() and local_kv(), there is no buffer of all heads")

    get_value_buffer = get_key_buffer
    get_kv_buffer = get_key_buffer
