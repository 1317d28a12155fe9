# SPDX-License-Identifier: Apache-2.0
"""Host memory for the KV of one head class: the host tier, which holds what the prefix cache no longer keeps on the
device.

A host slot is a row of every layer's host buffer of its class, as a slot on the device is one of every device buffer.
So a token takes a global host slot and, if its local KV is kept too, a local one. What probes keep of a token
(`probe.py`, `asked.py`) is found by its local slot, so it travels with that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from redknot_sglang.errors import RedKnotError
from redknot_sglang.kernels.copy_rows import WORD
from redknot_sglang.kernels.run_copies import Buffers, RunCopies
from redknot_sglang.kernels.stored import movable
from redknot_sglang.pool.head_class_pool import ClassBuffers, HeadClassPool
from redknot_sglang.pool.sizing import PoolSlots
from redknot_sglang.seams.sglang import ALLOC_MEMORY_FUNCS, HostKVCache, HostTensorAllocator

logger = logging.getLogger(__name__)

# Bytes of host memory that are left to the system and other processes: this many, or a tenth of the machine's if that is less.
_RESERVE = 10 * 2**30


class ClassHostPool(HostKVCache):
    """The host slots of one head class.

    slots: how many.
    layers: of each layer its buffers on the device, each [device slots + 1, ...], in groups of one or two of the same
        shape.
    copies: what copies between these buffers and the host. If they are on a GPU, host memory is pinned.
    """

    free_slots: Tensor

    def __init__(self, slots: int, layers: Sequence[Sequence[tuple[Tensor, ...]]], copies: RunCopies) -> None:
        # SGLang's constructor counts in slots of one width for all layers. What follows is what the rest of the class needs.
        self.size = self.page_num = slots
        self.page_size = 1
        self.layout, self.device = "layer_first", "cpu"
        self.start_layer, self.end_layer = 0, len(layers)
        self.can_use_write_back_jit = False
        self._shapes = [[tuple(group) for group in layer if group[0][0].numel()] for layer in layers]
        groups = [group for layer in self._shapes for group in layer]
        self.dtype = groups[0][0].dtype if groups else torch.uint8
        self.size_per_token = self.get_size_per_token()
        self.copies, self._device = copies, copies.device.type
        self.pin_memory = self._device == "cuda"
        odd = [group[0][0].nbytes for group in groups if group[0][0].nbytes % WORD]
        if odd and self.pin_memory:
            raise RedKnotError(
                f"--enable-hierarchical-cache copies rows in words of {WORD} bytes, and a row of this model's KV has {odd[0]}; "
                "leave it out"
            )
        self.kv_buffer = self.init_kv_buffer()
        self._layers = self._places()
        self.lock = threading.RLock()
        self.clear()

    def get_size_per_token(self) -> int:
        """Bytes of a host slot."""
        return sum(buffer[0].nbytes for layer in self._shapes for group in layer for buffer in group)

    def init_kv_buffer(self) -> Tensor:
        """All host memory of this class, uint8 [slots x bytes of a slot]; pinned beside a GPU."""
        return ALLOC_MEMORY_FUNCS[self._device](
            (max(1, self.size * self.size_per_token),),
            dtype=torch.uint8,
            device="cpu",
            pin_memory=self.pin_memory,
            allocator=HostTensorAllocator(),
        )

    def _places(self) -> list[list[Buffers]]:
        at, layers = 0, []
        for groups in self._shapes:
            pairs = []
            for group in groups:
                host = []
                for buffer in group:
                    size = self.size * buffer[0].nbytes
                    rows = self.kv_buffer[at : at + size].view(buffer.dtype).view(self.size, *buffer.shape[1:])
                    host.append(rows)
                    at += size
                pairs.append(Buffers(group, tuple(host)))
            layers.append(pairs)
        return layers

    def _merge_release_slots(self) -> None:
        """Called when the slots that are being given out run short: those that were freed since are given out next, in rising order,
        since what lies in long runs is copied faster.
        """
        super()._merge_release_slots()
        self.free_slots = self.free_slots.sort().values

    def load_to_device_per_layer(
        self,
        device_pool: Any,
        host_indices: Tensor,
        device_indices: Tensor,
        layer_id: int,
        io_backend: str,
        *,
        is_draft: bool = False,
    ) -> None:
        """Copy one layer's rows to the device, on the current stream.

        device_pool: SGLang's argument, without use here.
        host_indices: int64 [n], host slots, as `copies.moved` returned them.
        device_indices: int64 [n], slots on the device, the same.
        layer_id: the layer.
        io_backend: SGLang's argument, without use here.
        is_draft: that of newer SGLang, whether it is for a draft model; False here.
        """
        for pair in self._layers[layer_id]:
            self.copies.load(pair, host_indices, device_indices)

    def backup_from_device_all_layer(
        self, device_pool: Any, host_indices: Tensor, device_indices: Tensor, io_backend: str
    ) -> None:
        """Copy all layers' rows to the host, on the current stream. Parameters as of the other direction."""
        if not len(host_indices):
            return
        for layer in self._layers:
            for pair in layer:
                self.copies.save(pair, host_indices, device_indices)

    def pack(self, slots: Tensor, data: Tensor) -> None:
        """Write the rows of some slots one behind the other, layer by layer.

        slots: int64 [n].
        data: uint8 [n x bytes of a slot], on the CPU, contiguous, aligned to 8 bytes; changed in place.
        """
        for host, rows in self._rows(slots, data):
            rows.copy_(host.index_select(0, slots))

    def unpack(self, slots: Tensor, data: Tensor, which: Tensor) -> None:
        """Read rows that `pack` has written into slots.

        slots: int64 [n], where the chosen rows go.
        data: as `pack` wrote it, of as many rows as `which` has elements.
        which: bool [rows], the chosen ones, n of them.
        """
        for host, rows in self._rows(which, data):
            movable(host).index_copy_(0, slots, movable(rows)[which])

    def _rows(self, rows: Tensor, data: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each of the host's buffers, and its part of `data`. rows: has as many elements as `data` has rows."""
        at, count = 0, len(rows)
        for layer in self._layers:
            for pair in layer:
                for host in pair.host:
                    size = count * host[0].nbytes
                    yield host, data[at : at + size].view(host.dtype).view(count, *host.shape[1:])
                    at += size

    @property
    def row_layout(self) -> list[list[tuple[str, list[int]]]]:
        """Of each layer the dtype and shape of a slot's row in each buffer: what bytes of `pack` mean."""
        return [[(str(b.dtype), list(b.shape[1:])) for group in layer for b in group] for layer in self._shapes]

    def get_data_page(self, index: int, flat: bool = True) -> Tensor:
        """Raises TypeError: SGLang's stores would ask for pages, and ours are asked for objects (`store/`)."""
        raise TypeError("host slots of a head class have no pages: use pack() and unpack()")

    get_dummy_flat_data_page = get_data_page
    set_from_flat_data_page = get_data_page


def host_pools(pool: HeadClassPool, slots: PoolSlots) -> tuple[ClassHostPool, ClassHostPool]:
    """Host pools of both head classes.

    pool: the pool on the device.
    slots: host slots of each class.
    Raises RedKnotError if the machine has not that much memory.
    """
    global_layers, local_layers = (_layers(buffers) for buffers in (pool.full_kv_pool, pool.swa_kv_pool))
    if pool.probes is not None:
        local_layers[-1].append((pool.probes.asked, pool.probes.got))
    if pool.asked is not None:
        local_layers[-1].append((pool.asked.rows,))
    sizes = [
        sum(buffer[0].nbytes for layer in layers for group in layer for buffer in group if buffer[0].numel())
        for layers in (global_layers, local_layers)
    ]
    _check_memory(slots.global_slots * sizes[0] + slots.local_slots * sizes[1])
    copies = RunCopies(pool.buffer_device)
    return (
        ClassHostPool(slots.global_slots, global_layers, copies),
        ClassHostPool(slots.local_slots, local_layers, copies),
    )


def _layers(buffers: ClassBuffers) -> list[list[tuple[Tensor, ...]]]:
    return [[(k, v)] for k, v in zip(buffers.k, buffers.v, strict=True)]


def _check_memory(needed: int) -> None:
    memory = psutil.virtual_memory()
    free = memory.available - min(_RESERVE, memory.total // 10)
    if needed > free:
        raise RedKnotError(
            f"the host tier needs {needed / 2**30:.1f} GiB of memory on this rank, and {max(0, free) / 2**30:.1f} GiB are free; "
            "lower --hicache-ratio or --hicache-size"
        )
    logger.info("RedKnot host tier: %.2f GiB on this rank", needed / 2**30)
