# SPDX-License-Identifier: Apache-2.0
"""Copies between the device and the host tier: SGLang's controller, with loads that begin where a forward begins.

SGLang begins to load when it makes a batch. Here that would be too early: a relocation that an earlier request of the
same batch waits for may still read the slots that are loaded into, since the scheduler gives a slot away as soon as
nobody will lock it again, and relocations run at the start of the forward. So loads stand in the same queue
(`pool/relocation.py`) and begin at their place in it. They run on a stream of their own, layer by layer, while the
forward's first layers run already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from torch import Tensor

from redknot_sglang.kernels.run_copies import RunCopies
from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.pool.host import host_pools
from redknot_sglang.pool.sizing import PoolSlots
from redknot_sglang.seams.sglang import (
    ComponentType,
    EvictParams,
    HostPoolGroup,
    HybridCacheController,
    PoolName,
    StackBuildResult,
    StackStrategy,
    build_pool_entry,
)


class HostCopies(HybridCacheController):
    """The controller of one scheduler.

    pool: on the device.
    copies: what copies, that of the host pools.
    args, kwargs: those of SGLang's controller.
    """

    def __init__(self, *args: Any, pool: HeadClassPool, copies: RunCopies, **kwargs: Any) -> None:
        self._copies = copies
        self._relocations, self._layer_count = pool.relocations, pool.layer_num
        self._held = False
        # Seconds that finished loads took where the device's events cannot say, as on a CPU; in their order.
        self.seconds: deque[float] = deque()
        super().__init__(*args, **kwargs)
        self._relocations.loads = self

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collects what is written to the host within this block into one copy, which begins at the block's end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.start_writing()

    def start_writing(self) -> None:
        """Copy to the host what `write` has queued, on a stream of its own, behind all that the current stream has to
        do.
        """
        if not self._held:
            super().start_writing()

    def move_indices(self, host_indices: Tensor, device_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Both on the device, where the copies look them up, in the order in which they are copied best; nobody waits for that. Both
        int64 [n]. SGLang calls it once for all layers, with host indices that are on the host still, so runs are looked for here.
        """
        return self._copies.moved(host_indices, device_indices)

    def load(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Allocate device slots for what is to be loaded, and queue it for the next forward.

        Parameters are SGLang's. Returns global slots, int64 [n], or None, with nothing done, if there is no room.
        """
        slots: Tensor | None = super().load(*args, **kwargs)
        if slots is not None:
            self._relocations.add_load(self.load_queue.pop())
        return slots

    def start_loading(self) -> int:
        """Starts nothing, since `begin` does that. Returns -1, which tells SGLang that its batch waits for no load."""
        return -1

    def begin(self, operations: Sequence[Any]) -> None:
        """Start loads, behind all that the current stream has to do; it waits for their layers by `wait_for_layer`.

        operations: SGLang's CacheOperations, as queued by `load`.
        """
        counter, begin = self.layer_done_counter, perf_counter()
        # The counter has events for a few loads under way; a load that reuses them must have been waited for.
        counter.events[(counter.producer_index + 1) % counter.num_counters].finish_event.synchronize()
        self.load_queue.extend(operations)
        counter.set_consumer(super().start_loading())
        self.seconds.append(perf_counter() - begin)

    def wait_for_layer(self, layer: int) -> None:
        """Have the current stream wait until the loads that were begun last have brought a layer."""
        self.layer_done_counter.wait_until(layer)

    def wait(self) -> None:
        """Have the current stream wait for the loads that were begun last, if it has not yet."""
        self.layer_done_counter.wait_until(self._layer_count - 1)
        self.layer_done_counter.set_consumer(-1)

    def reset(self) -> None:
        """Forget all copies that have not begun; SGLang calls it when the prefix cache is emptied."""
        super().reset()
        self._relocations.forget_loads()
        self.seconds.clear()


class HostStack(StackStrategy):
    """What SGLang is to build for a host tier over a HeadClassPool. slots: host slots of each class."""

    def __init__(self, slots: PoolSlots) -> None:
        self._slots = slots

    def matches(self, kvcache: Any, components: set[Any]) -> bool:
        """Whether it is meant for a pool of the device."""
        return isinstance(kvcache, HeadClassPool)

    def build(
        self,
        *,
        cache: Any,
        kvcache: HeadClassPool,
        params: Any,
        server_args: Any,
        load_cache_event: Any,
        **kwargs: Any,
    ) -> Any:
        """Host pools of both classes, and the controller that copies. Raises RedKnotError if memory is lacking."""
        host_global, host_local = host_pools(kvcache, self._slots)
        local = params.token_to_kv_pool_allocator.swa_attn_allocator
        layers = kvcache.layer_num

        def entry(name: Any, host: Any, device: Any, **functions: Callable[..., Any]) -> Any:
            mapping = {layer: layer for layer in range(layers)}
            return build_pool_entry(
                name=name,
                host_pool=host,
                device_pool=device,
                layer_mapping=mapping,
                transfer_layer_num=layers,
                is_anchor=name is PoolName.KV,
                **functions,
            )

        group = HostPoolGroup(
            [
                entry(PoolName.KV, host_global, kvcache.full_kv_pool),
                entry(
                    PoolName.SWA,
                    host_local,
                    kvcache.swa_kv_pool,
                    host_evict_fn=lambda slots: cache.evict_host(slots, ComponentType.SWA),
                    device_evict_fn=lambda slots: cache.evict(EvictParams(swa_num_tokens=slots)),
                    device_alloc_fn=local.alloc,
                    device_free_fn=local.free,
                ),
            ]
        )
        copies = HostCopies(
            params.token_to_kv_pool_allocator,
            group,
            params.page_size,
            params.tp_cache_group,
            load_cache_event=load_cache_event,
            attn_cp_group=params.attn_cp_cache_group,
            attn_tp_group=params.attn_tp_cache_group,
            pp_group=params.pp_cache_group,
            write_policy=server_args.hicache_write_policy,
            io_backend="kernel",
            transfer_layer_num=layers,
            pool=kvcache,
            copies=host_global.copies,
        )
        return StackBuildResult(
            host_pool_group=group,
            cache_controller=copies,
            component_host_pools={ComponentType.FULL: host_global, ComponentType.SWA: host_local},
            transfer_layer_num=layers,
            pools_desc="global and local heads",
        )
