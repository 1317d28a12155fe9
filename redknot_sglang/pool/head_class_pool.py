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
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.heads import HeadMap
from redknot_sglang.heads.dealing import checkpoint_order
from redknot_sglang.pool.asked import AskedQueries
from redknot_sglang.pool.dealing import Dealing
from redknot_sglang.pool.probe import ProbeBuffers
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.relocation import RelocationQueue
from redknot_sglang.seams.sglang import KVCache, SWAKVPool

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

    def to_host(self, slots: Tensor) -> list[Tensor]:
        """KV of some slots, of each buffer `[n, width, head_dim]` on the host. slots: int64 [n]."""
        return [buffer[slots].cpu() for buffer in (*self.k, *self.v)]

    def from_host(self, slots: Tensor, rows: list[Tensor]) -> None:
        """Write what `to_host` has given. slots: int64 [n], other ones than then."""
        for buffer, kept in zip((*self.k, *self.v), rows, strict=True):
            buffer[slots] = kept.to(buffer.device)

    def copy_slots(self, target: Tensor, source: Tensor) -> None:
        """Copy KV between slots in every layer.

        target: int64 [n], slots to write.
        source: int64 [n], slots to read.
        """
        for buffer in (*self.k, *self.v):
            buffer[target] = buffer[source]


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
    dtype: of K and V.
    device: where the buffers are.
    probe_width: query heads whose rows are kept for the repair policy `blend` (`probe.py`) on all ranks together, 0
        for none.
    group: query heads for each KV head of the whole model, by which the map's retrieval heads are found.
    rank, ranks: number of this tensor-parallel rank, and how many there are.
    dealing: which heads each rank has, by the same map, group and number of ranks; None for the checkpoint's order.

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
    ) -> None:
        self.dealing = dealing or Dealing(head_map, group, ranks, checkpoint_order(head_map))
        spread = Ranks(self.dealing.dealt, group, ranks)
        self.whole_map, head_map = head_map, spread.share(rank)
        self.probe_width = probe_width
        KVCache.__init__(
            self,
            size=size_global,
            page_size=1,
            dtype=dtype,
            layer_num=head_map.num_layers,
            device=device,
            enable_memory_saver=False,
        )
        layers = range(head_map.num_layers)
        self.head_map = head_map
        self.head_num = head_map.num_kv_heads
        self.head_dim = head_dim
        self.size_swa = size_local
        self.full_layer_nums = self.swa_layer_nums = head_map.num_layers
        self.bytes_per_slot = spread.together(head_dim, dtype.itemsize, probe_width)
        self.full_kv_pool = ClassBuffers(
            size_global, [head_map.num_global(layer) for layer in layers], head_dim, dtype, device
        )
        self.swa_kv_pool = ClassBuffers(
            size_local, [head_map.num_local(layer) for layer in layers], head_dim, dtype, device
        )
        self.full_to_swa_index_mapping: Tensor | None = None
        self.relocations = RelocationQueue()
        self.probes: ProbeBuffers | None = None
        if probe_width:
            # On every rank, since all of them take part in a choice; some may have no global heads in the probe layer.
            width = spread.own_probe_width(rank, probe_width)
            self.probes = ProbeBuffers(size_local, width, self.whole_map, head_dim, dtype, device)
        self.asked: AskedQueries | None = None
        if self.whole_map.retrieval:
            # On every rank, since all of them take part in a choice; some may have no retrieval heads.
            self.asked = AskedQueries(size_local, head_map, spread.group_of_rank, head_dim, dtype, device)
        total = sum(self.get_kv_size_bytes())
        self.mem_usage = total / 2**30
        logger.info(
            "Head-class KV pool: %.2f GiB, %d global and %d local slots", self.mem_usage, size_global, size_local
        )

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
        """Copy KV of tokens to other slots in both classes.

        tgt_loc: int64 [n], global slots to write.
        src_loc: int64 [n], global slots to read.
        """
        self.full_kv_pool.copy_slots(tgt_loc, src_loc)
        self.swa_kv_pool.copy_slots(
            self.translate_loc_from_full_to_swa(tgt_loc), self.translate_loc_from_full_to_swa(src_loc)
        )

    def get_cpu_copy(self, indices: Tensor, mamba_indices: Any = None) -> RequestCopy:
        """KV of a request that a decode server retracts, for `load_cpu_copy`.

        indices: int32 or int64 [n], its global slots by position. mamba_indices: None, always.
        """
        indices = indices.long()
        local = self.translate_loc_from_full_to_swa(indices)
        kept = local > 0
        return RequestCopy(self.full_kv_pool.to_host(indices), self.swa_kv_pool.to_host(local[kept]), kept)

    def load_cpu_copy(self, kv_cache_cpu: RequestCopy, indices: Tensor, mamba_indices: Any = None) -> None:
        """Write it into new slots. Of what was kept in the local class only positions that have a local slot now come back.

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
